import math

import pytest
from mmengine.logging import MessageHub

from mmsokd.distillers.schedule import Clock, WeightSchedule
from tests.builders import distiller, losses_of, retinanet

FITNET = dict(type='mmsokd.FitNetLoss', tap='neck')


def weights(value, *epochs):
    """At epochs of a training of 12 epochs of 10 iterations."""
    schedule = WeightSchedule('loss_weight', value)
    return [schedule(Clock(round(10 * epoch), 120, 12)) for epoch in epochs]


@pytest.mark.parametrize(
    ('value', 'expected'),  # at epochs 0, 3, 6, 12
    [
        (2.0, [2, 2, 2, 2]),
        ([(0.0, 1.0), (0.5, 0.0)], [1, 0.5, 0, 0]),
        (dict(shape='linear', start=2.0, final=1.0), [2, 1.75, 1.5, 1]),
        (dict(shape='cosine'), [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0]),
        (dict(shape='linear', start=0.0, final=4.0, begin=3, end=9), [0, 0, 2, 4]),
        (dict(shape='linear', start=0.0, final=4.0, begin=30, end=90, by_epoch=False), [0, 0, 2, 4]),
        (dict(start=3.0, stop=6), [3, 3, 0, 0]),
        (dict(start=3.0, stop=60, by_epoch=False), [3, 3, 0, 0]),
        (dict(shape='cosine', start=0.0, final=1.0, end=6, stop=12), [0, 0.5, 1, 0]),
    ],
)
def test_weights(value, expected):
    assert weights(value, 0, 3, 6, 12) == pytest.approx(expected)


def test_stops_with_the_epochs_first_iteration():
    assert weights(dict(start=1.0, stop=7), 6.9, 7) == [1.0, 0.0]


def test_without_a_runner_a_training_begins():
    assert WeightSchedule('w', dict(shape='linear', start=2.0))(Clock()) == 2.0


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (dict(shape='cosin'), r"w\.shape: .*did you mean 'cosine'"),
        (dict(strat=1.0), r"w\.strat: expected one of .*nearest: \['start'\]"),
        (dict(start=-1.0), r'w\.start: expected a number >= 0, found -1\.0'),
        (dict(shape='linear', begin=4, end=4), r'w\.end: expected a time after begin=4, found 4'),
        (dict(shape='linear', begin=4, stop=4), r'w\.stop: expected a time after begin=4, found 4'),
        (dict(start=1.0, final=0.0, end=8), r"w\.final: expected it beside shape='linear' or 'cosine', found shape="),
        (dict(begin=5), r"w\.begin: expected it beside shape='linear' or 'cosine'"),
        (dict(shape='constant', end=5), r"w\.end: expected it beside shape='linear' or 'cosine'"),
        (dict(stop=5, by_epoch='no'), r"w\.by_epoch: expected True or False, found 'no'"),
        ([(0.5, 1.0), (0.2, 1.0)], 'progress rising'),
        ('1', 'expected a number'),
        (True, r'w: expected a number >= 0, .*found True'),
        ([(0.0, True)], r'w: expected a number >= 0, .*found \[\(0\.0, True\)\]'),
        ([(False, 1.0)], r'w: expected a number >= 0, .*found \[\(False, 1\.0\)\]'),
        ([('0', '1')], r"w: expected a number >= 0, .*found \[\('0', '1'\)\]"),
        ([(0.0, math.inf)], r'w: expected a number >= 0, .*found \[\(0\.0, inf\)\]'),
        (dict(start=True), r'w\.start: expected a number >= 0, found True'),
    ],
)
def test_bad_schedules(value, message):
    with pytest.raises(ValueError, match=message):
        WeightSchedule('w', value)


def test_a_time_beyond_the_training():
    with pytest.raises(ValueError, match=r'loss_weight: expected times within the training of 12 epochs, found 13'):
        weights(dict(stop=13), 0)


@pytest.mark.parametrize(
    ('times', 'write'),
    [
        (dict(stop=0.5), 'stop=10000, by_epoch=False'),
        (dict(shape='linear', begin=0.1, end=0.5, stop=1), 'begin=2000, end=10000, stop=20000, by_epoch=False'),
    ],
)
def test_parts_of_a_training_of_one_epoch_are_told_in_iterations(times, write):
    with pytest.raises(ValueError, match=f'for these parts of the 20000 iterations write {write}$'):
        WeightSchedule('w', times)(Clock(0, 20000, 1))


@pytest.mark.parametrize('times', [dict(stop=8), dict(stop=1), dict(shape='linear', end=0.5)])
def test_epochs_in_a_loop_that_counts_iterations(times):
    clock = Clock(0, 20000, 1)  # what MMEngine's IterBasedTrainLoop says of epochs
    with pytest.raises(ValueError, match=r'w: expected times in iterations \(by_epoch=False\)'):
        WeightSchedule('w', times)(clock)
    assert WeightSchedule('w', dict(times, by_epoch=False))(clock) == 1.0
    assert WeightSchedule('w', dict(shape='linear'))(Clock(5000, 20000, 1)) == 0.75


def test_a_teacher_is_not_run_once_its_term_has_stopped():
    hub = MessageHub.get_current_instance()
    terms = dict(
        loss_a=dict(FITNET, teacher='a', loss_weight=dict(start=1.0, stop=1)), loss_b=dict(FITNET, teacher='b')
    )
    model = distiller('Distiller', teacher=None, teachers=dict(a=retinanet(24), b=retinanet(24)), terms=terms).train()
    runs = []
    for name, teacher in model.teachers.items():
        teacher.backbone.register_forward_hook(lambda *_, name=name: runs.append(name))
    try:
        for key, value in dict(max_iters=20, max_epochs=2, iter=9).items():
            hub.update_info(key, value)
        losses_of(model)
        assert runs == ['a', 'b']
        hub.update_info('iter', 10)
        losses = losses_of(model)
        assert runs == ['a', 'b', 'b']
        assert losses['distill.loss_a'] == 0
        assert losses['distill.loss_b'] > 0
    finally:
        for key in ('max_iters', 'max_epochs', 'iter'):
            hub.update_info(key, 0)
