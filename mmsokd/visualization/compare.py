"""Several runs in one table, and in one chart."""

from collections.abc import Sequence

from mmsokd.visualization.charts import Chart, Line
from mmsokd.visualization.describe import method_of, role_of
from mmsokd.visualization.runs import Run, best_of, is_less_better

METRICS = 6  # columns of a table; further metrics are told elsewhere
_ORDER = ('teacher', 'student alone', 'host')  # others follow, and the distilled student comes last


def ordered(runs: Sequence[Run], main: Run) -> list[Run]:
    """Teacher, student alone, hosts, other methods, and the run they are compared with."""
    rank = {run.folder: _ORDER.index(role) if (role := role_of(run, main)) in _ORDER else len(_ORDER) for run in runs}
    return [*sorted((run for run in runs if run is not main), key=lambda run: rank[run.folder]), main]


def comparison(runs: Sequence[Run], key: str | None = None) -> tuple[list[str], list[list[str]]]:
    """A table: head and rows, in the order of ``runs``; differences are to the first one.

    Args:
        runs: at least one.
        key: the metric; by default the first run's most telling one.

    Raises:
        ValueError: no run has such a metric, or none has any.
    """
    key = metric_of(runs, key)
    base = runs[0].metric(key)[1]
    head = ['run', 'method', 'trained', f'{key}, last', 'best', 'to the first', 's / iteration', 'iterations took']
    rows = []
    for run in runs:
        values = run.metric(key)[1]
        planned, unit = run.planned
        change = f'{values[-1] - base[-1]:+.4g}' if values and base and run is not runs[0] else '-'
        seconds = run.median('time')
        rows.append(
            [
                run.name,
                method_of(run.config).text,
                f'{unit} {run.reached}' + ('' if run.is_finished else f' of {planned}' if planned else ''),
                number(values[-1]) if values else '-',
                number(best_of(key, values)) if values else '-',
                change,
                f'{seconds:.4g}' if seconds is not None else '-',
                duration(run.seconds),
            ]
        )
    return head, rows


def metric_of(runs: Sequence[Run], key: str | None) -> str:
    """The metric to compare by.

    Raises:
        ValueError: no run has such a metric, or none has any.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if not known:
        raise ValueError(f'compare: expected a validation in the logs, found none in {[run.name for run in runs]}')
    if key is not None and key not in known:
        raise ValueError(f'--metric: expected one of {known}, found {key!r}')
    return key or next(run.metrics[0] for run in runs if run.metrics)


def comparison_charts(runs: Sequence[Run], key: str | None = None) -> list[Chart]:
    """The metric, the loss and the time of an iteration of several runs."""
    charts = [metric_chart(runs, metric_of(runs, key), runs[0])]
    for column, title, unit in (('loss', 'loss, all terms', ''), ('time', 'time of an iteration', 'seconds')):
        lines = [Line(run.name, *run.values(column)) for run in runs if run.values(column)[0]]
        if lines:
            charts.append(Chart(title, lines, 'iteration', unit, log=column == 'loss'))
    return charts


def metric_chart(runs: Sequence[Run], key: str, main: Run) -> Chart:
    """A metric over the validations of those runs that have it."""
    lines = [Line(run.name, *run.metric(key)) for run in runs if run.metric(key)[0]]
    better = 'less is better' if is_less_better(key) else ''
    return Chart(key, lines, main.val_unit, better)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in line) + ' |' for line in lines)


def number(value: float) -> str:
    """Four digits, or those of a large whole number."""
    return f'{value:.0f}' if abs(value) >= 10000 else f'{value:.4g}'


def duration(seconds: float | None) -> str:
    """``1 h 05 min``."""
    if seconds is None:
        return '-'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'
