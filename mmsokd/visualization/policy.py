"""Charts of how a policy came to be what it is: SoKD's, and TST's augmenter."""

import math

import numpy as np

from mmsokd.augment.feature_ops import FEATURE_OPS
from mmsokd.augment.policy import SUB_POLICIES
from mmsokd.visualization.charts import Chart, Line, Matrix
from mmsokd.visualization.runs import Run

_TOP = 6  # sub-policies that get a colour and a name
_SPAN = 0.04  # of an axis of probabilities or levels, at least


def policies_of(run: Run) -> list[str]:
    """The names of what ``policy.json`` tells of."""
    return list(dict.fromkeys(key for line in run.policy for key in line if key != 'iter'))


def policy_charts(run: Run, name: str) -> list[Chart | Matrix]:
    """Firing rates and magnitudes of the operations over the iterations, and of SoKD's policy its sub-policies.

    Args:
        run: whose.
        name: one of :func:`policies_of`.
    """
    lines = [(line['iter'], line[name]) for line in run.policy if name in line]
    x = [iteration for iteration, _ in lines]
    states = [state for _, state in lines]
    titles = dict(fires='firing rate', magnitude='magnitude')
    charts: list[Chart | Matrix] = [
        Chart(
            f'{titles[what]} of each operation',
            _by_op(x, states, what),
            'iteration',
            f'{titles[what]} (0 to 1)',
            span=_SPAN,
        )
        for what in ('fires', 'magnitude')
    ]
    if 'sub_policies' not in states[-1]:
        return charts
    chances = np.array([state['sub_policies'] for state in states])
    order = np.argsort(-chances[-1], kind='stable')
    ranked = [
        Line(' + '.join(SUB_POLICIES[i]) if rank < _TOP else '', x, chances[:, i].tolist(), faint=rank >= _TOP)
        for rank, i in enumerate(order)
    ]
    entropy = Line('entropy', x, [state['entropy'] for state in states])
    return [
        Chart(
            f'probability of each of {len(SUB_POLICIES)} sub-policies',
            [*reversed(ranked[_TOP:]), *ranked[:_TOP]],
            'iteration',
            'probability',
            level=('all alike', 1 / len(SUB_POLICIES)),
            span=_SPAN,
        ),
        *charts,
        Chart('entropy', [entropy], 'iteration', 'nats', level=('all alike', math.log(len(SUB_POLICIES)))),
        _pairs(chances[-1], x[-1]),
    ]


def _by_op(x: list[int], states: list[dict], what: str) -> list[Line]:
    """A line an operation, the highest last value first, as they lie in the chart."""
    ops = sorted(states[-1][what], key=lambda op: -states[-1][what][op])
    return [Line(op, x, [state[what].get(op, math.nan) for state in states]) for op in ops]


def _pairs(chances: np.ndarray, iteration: int) -> Matrix:
    names = list(FEATURE_OPS)
    values = np.full((len(names),) * 2, np.nan)
    for pair, chance in zip(SUB_POLICIES, chances, strict=True):
        first, second = (names.index(op) for op in pair)
        values[first, second] = values[second, first] = 100 * chance
    return Matrix(f'pairs of operations, iteration {iteration}', names, values, 'probability (%)', 100 * _SPAN)
