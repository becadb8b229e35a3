"""Losses that drown the student's own are told."""

from types import SimpleNamespace

import pytest
import torch

from mmsokd.hooks import GuardHook
from mmsokd.hooks.balance import ITERATIONS, MOST, Balance


def told(**losses: float) -> list[list[str]]:
    balance = Balance()
    steps = [{name.replace('__', '.'): torch.tensor(value) for name, value in losses.items()}] * (ITERATIONS + 2)
    return [balance.add(step) for step in steps]


def test_told_once_with_its_key():
    own = dict(student__loss=1.0, student__loss_bbox=1.0)
    found = told(loss=99.0, **own, distill__loss_hint=24.0, sokd__loss_area=10.0)
    assert [len(found) for found in found] == [0] * (ITERATIONS - 1) + [2, 0, 0]
    assert found[ITERATIONS - 1] == [
        ('distill.loss_hint', 12.0, 'model.terms.loss_hint.loss_weight'),
        ('sokd.loss_area', 5.0, 'model.areas.area_weight'),
    ]


@pytest.mark.parametrize(
    'losses',
    [
        dict(student__loss=1.0, distill__loss_hint=MOST),
        dict(student__loss=0.0, distill__loss_hint=1.0),  # a student that has nothing to learn itself
        dict(student__loss=1.0, student__loss_bbox=9.0, distill__acc=99.0),  # no loss of a term
        {},
    ],
)
def test_not_told(losses: dict):
    assert not any(told(**losses))


def test_what_others_learn_from_is_neither():
    others = dict(online_teacher__loss_cls=99.0, mutual__loss_kd=99.0, sokd__loss_fit=99.0)
    assert not any(told(student__loss=1.0, distill__loss_kd=1.0, **others))
    found = told(student__loss=1.0, distill__loss_kd=9.0, **others)[ITERATIONS - 1]
    assert found == [('distill.loss_kd', 9.0, 'model.terms.loss_kd.loss_weight')]


def test_one_that_is_no_number_hides_no_other():
    found = told(student__loss=1.0, distill__loss_a=float('nan'), distill__loss_b=9.0)[ITERATIONS - 1]
    assert [name for name, *_ in found] == ['distill.loss_b']


def test_a_term_that_begins_within_the_iterations_counts_from_there():
    balance = Balance()
    for i in range(ITERATIONS):
        step = {'student.loss': torch.tensor(1.0)}
        if i >= ITERATIONS // 2:
            step['distill.loss_kd'] = torch.tensor(20.0)
        found = balance.add(step)
    assert len(found) == 1
    assert found[0].ratio == pytest.approx(10.0)


def test_the_guard_tells(monkeypatch):
    told = []
    monkeypatch.setattr('mmsokd.hooks.guard.print_log', lambda text, *_: told.append(text))
    hook, runner = GuardHook(), SimpleNamespace(hooks=[])
    for i in range(2 * ITERATIONS):
        outputs = {'student.loss': torch.tensor(1.0), 'distill.loss_kd': torch.tensor(9.0)}
        hook.after_train_iter(runner, i, None, outputs)
    assert len(told) == 1
    assert told[0].startswith('distill.loss_kd comes to 9 times')
    assert told[0].endswith('lower model.terms.loss_kd.loss_weight')
