"""FM-KT: the flow's steps and where they arrive, who learns from whom, and that it carries a student to its teacher."""

import copy
import re

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from torch import nn

from mmsokd.losses import dist_loss, flow_ends, fmkt_loss, kd_loss
from mmsokd.registry import MODELS
from tests.losses.cases import CASES, FMKT, FMKT_SHAPES, build, fmkt_ends, more, true_classes
from tests.losses.common import arrays, assert_agrees, assert_slopes, feats, relative_error
from tests.reference import losses as reference

NAMES = 'FMKTLoss', 'FMKTLoss by KD'


def sides(index, seed=1):
    return [feats(seed + i, shape) for i, shape in enumerate(FMKT_SHAPES[index])]


# ---- the flow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('steps', [1, 3, 8])
def test_flow_against_the_slow_twin(steps):
    start = feats(1, (4, 5))
    ends = flow_ends(start, lambda x, t: (x * t + t**2).sin(), steps)
    expected, arrived = reference.fmkt_flow(start.numpy(), lambda x, t: np.sin(x * t + t**2), steps)
    assert ends.shape == (steps, 4, 5)
    assert_agrees('flow_ends', [relative_error(ends, np.stack(expected)), relative_error(ends.mean(0), arrived)])


@pytest.mark.parametrize('steps', [1, 2, 8])
def test_flow_against_closed_forms(steps):
    """Velocities whose Euler sums are known: a constant, the time itself, and the state."""
    start = feats(1, (3, 4))
    torch.testing.assert_close(flow_ends(start, lambda x, t: torch.full_like(x, 2.0), steps)[-1], start - 2)
    arrived = flow_ends(start, lambda x, t: torch.full_like(x, t), steps).mean(0)
    torch.testing.assert_close(arrived, start - (steps + 1) / (2 * steps))
    arrived = flow_ends(start, lambda x, t: x, steps).mean(0)
    torch.testing.assert_close(arrived, start * (1 - 1 / steps) ** steps)


def test_gradient_of_the_flow_against_finite_differences():
    def function(start, weight):
        return flow_ends(start, lambda x, t: (x @ weight + t).tanh(), 3)

    inputs = [feats(1, (2, 3)).requires_grad_(), feats(2, (3, 3)).requires_grad_()]
    assert torch.autograd.gradcheck(function, inputs)


# ---- who learns from whom -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('index', range(len(FMKT_SHAPES)))
@pytest.mark.parametrize('name', NAMES)
def test_gradient_against_finite_differences_of_the_slow_twin(name, index):
    """In which the mean of the steps is held fixed while the student learns it; autograd must see the same."""
    loss, (s, t) = build(name), sides(index)
    s, t = ([x.requires_grad_() for x in side] for side in (s, t))
    loss(s, t, **more(name, s)).backward()
    labels, frozen = true_classes(s[1].shape), np.mean(fmkt_ends(loss, arrays(*s)), 0)

    def value():
        ends = fmkt_ends(loss, arrays(*s))
        return reference.fmkt(ends, *arrays(s[1], t[1]), labels, loss.metric, loss.tau, frozen)

    named = [('feature', s[0]), ('logits', s[1]), ('teacher', t[1]), *loss.named_parameters()]
    assert_slopes(value, named)


def test_every_part_learns():
    loss, (s, t) = build('FMKTLoss'), sides(0)
    s = [x.requires_grad_() for x in s]
    loss(s, t, **more('FMKTLoss', s)).backward()
    assert min(x.grad.abs().max() for x in (*s, *loss.parameters())) > 1e-9


def test_flow_does_not_learn_from_the_students_output():
    loss, (s, t) = build('FMKTLoss'), sides(0)
    values = [loss([s[0], feats(seed, (5, 4))], t, **more('FMKTLoss', s)) for seed in (2, 7)]
    grads = [torch.autograd.grad(value, [*loss.parameters()]) for value in values]
    assert values[0] != values[1]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize(('metric', 'distance'), [('dist', dist_loss), ('kd', kd_loss)])
def test_plain_head_learns_the_mean_of_the_steps(metric, distance):
    """What the student's logits get is the gradient of the distance to that mean, and of nothing else."""
    ends, t, y = feats(1, (3, 6, 5)), feats(2, (6, 5)), torch.arange(6) % 5
    s = feats(3, (6, 5)).requires_grad_()
    fmkt_loss(ends, s, t, y, metric, tau=2.0).backward()
    alone = s.detach().clone().requires_grad_()
    (distance(alone, ends.mean(0), tau=2.0) * (2.0 if metric == 'dist' else 1.0)).backward()
    torch.testing.assert_close(s.grad, alone.grad)


def test_what_has_no_class_is_left_out_of_the_cross_entropy_alone():
    ends, t, s = feats(1, (3, 2, 4, 3, 3)), feats(2, (2, 4, 3, 3)), feats(3, (2, 4, 3, 3))
    y = torch.arange(18).view(2, 3, 3) % 5 - 1
    expected = reference.fmkt(*arrays(ends, s, t), y.numpy(), 'kd', 2.0)
    assert_agrees('FMKTLoss ignore', [relative_error(fmkt_loss(ends, s, t, y, 'kd', 2.0), expected)])
    unlabelled = fmkt_loss(ends, s, t, torch.full_like(y, -1), 'kd', 2.0)
    distances = sum(kd_loss(end, t, 2.0) for end in ends) / 3 + kd_loss(s, ends.mean(0), 2.0)
    torch.testing.assert_close(unlabelled, distances)


# ---- it works -------------------------------------------------------------------------------------------------------


def pictures(count, seed):
    """Features of a student, logits of a teacher that no linear layer makes of them, and the teacher's classes."""
    x = feats(seed, (count, 6)).float()
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        teacher = net(x)
    return x, teacher, [DataSample().set_gt_label(y) for y in teacher.argmax(1).tolist()]


@pytest.mark.parametrize('metric', ['dist', 'kd'])
def test_flow_arrives_at_the_teacher_and_the_plain_head_follows(metric):
    """On unseen pictures too it ends nearer to the teacher than it starts, and than the plain head, which is linear."""
    torch.manual_seed(0)
    cfg = dict(type='mmsokd.FMKTLoss', student_channels=[6, 4], teacher_channels=[9, 4], steps=4, metric=metric)
    loss, own = MODELS.build(cfg), nn.Linear(6, 4)
    untrained = copy.deepcopy(own)
    x, t, samples = pictures(256, 1)
    optimizer = torch.optim.Adam([*loss.parameters(), *own.parameters()], lr=0.01)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        value = loss([x, own(x)], [x, t], samples)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:10])
    with torch.no_grad():
        for x, t, _ in (pictures(256, 1), pictures(256, 2)):
            start, plain = loss.classify(x), own(x)
            ends = loss.predict(x, plain)
            assert kd_loss(ends.mean(0), t, 1.0) < 0.5 * kd_loss(start, t, 1.0)
            assert kd_loss(ends.mean(0), t, 1.0) < 0.8 * kd_loss(plain, t, 1.0)
            assert dist_loss(plain, ends.mean(0)) < 0.5 * dist_loss(untrained(x), ends.mean(0))


# ---- what it takes --------------------------------------------------------------------------------------------------


def test_a_feature_of_another_size_than_dense_logits_is_refused():
    loss = build('FMKTLoss')
    logits = torch.zeros(2, 4, 2, 3)
    for feature in (torch.zeros(2, 3, 4, 6), torch.zeros(2, 3)):
        found = re.escape(f"of the logits' size where they are dense, found {tuple(feature.shape)} beside logits ")
        with pytest.raises(ValueError, match=found):
            loss.predict(feature, logits)


WRONG = [
    (dict(steps=0), 'FMKTLoss.steps: expected an integer >= 1, found 0'),
    (dict(steps=2.0), 'FMKTLoss.steps: expected an integer >= 1, found 2.0'),
    (dict(metric='dists'), "FMKTLoss.metric: expected one of ['dist', 'kd'], found 'dists'"),
    (dict(tau=0), 'FMKTLoss.tau: expected a number > 0, found 0'),
    (dict(ignore_index='a'), "FMKTLoss.ignore_index: expected an integer, found 'a'"),
    (dict(student_channels=[4], teacher_channels=[4]), 'FMKTLoss: expected a feature and the output, of one number of'),
    (dict(student_channels=[3, 5]), 'found channels [3, 5] of the student and [2, 4] of the teacher; tap the layer'),
    (dict(student_channels=[3, 1], teacher_channels=[2, 1]), 'FMKTLoss: expected at least 2 classes'),
]


@pytest.mark.parametrize(('wrong', 'message'), WRONG)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MODELS.build(dict(type='mmsokd.FMKTLoss', **{**FMKT, **wrong}))


def test_cases_are_of_both_metrics():
    assert {CASES[name].cfg.get('metric', 'dist') for name in NAMES} == {'dist', 'kd'}
