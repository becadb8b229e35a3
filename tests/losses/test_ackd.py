"""ACKD: its parts, the learners' fusion, who learns what from the discriminator, and which levels it takes."""

import copy
import math
import re

import pytest
import torch

from mmsokd.losses import attention_fusion, discriminator_loss, kd_loss
from mmsokd.registry import MODELS
from tests.losses.cases import ACKD_WEIGHTS, CASES, ackd_nets, build, classes, more, ssr_labels
from tests.losses.common import arrays, assert_agrees, assert_slopes, feats, relative_error
from tests.reference import ackd as reference

NAMES = 'ACKDLoss', 'ACKDLoss of signed features'
SHAPES = [(name, i) for name in NAMES for i in range(len(CASES[name].shapes))]


def sides(name, index, seed=1):
    return [feats(seed + i, shape) for i, shape in enumerate(CASES[name].shapes[index])]


@pytest.mark.parametrize(('name', 'index'), SHAPES)
def test_each_part_against_the_slow_twin(name, index):
    loss, (s, t) = build(name), sides(name, index)
    found = loss(s, t, **more(name, s)).stats.values()
    parts = reference.parts(*arrays(s, t), ackd_nets(loss), ssr_labels(tuple(s[-1].shape)), 2.0, loss.signed)
    assert_agrees(f'parts of {name}', [relative_error(*pair) for pair in zip(found, parts, strict=True)])


@pytest.mark.parametrize(('name', 'index'), SHAPES)
def test_gradient_against_finite_differences_of_the_slow_twin(name, index):
    """The discriminator's parameters descend on its loss; what lies before it climbs, by the weight 0.3."""
    loss, (s, t) = build(name), sides(name, index)
    loss(s, t, **more(name, s))  # statistics to be used in eval mode
    loss.eval()
    s = [x.requires_grad_() for x in s]
    loss(s, t, **more(name, s)).loss.backward()
    labels = ssr_labels(tuple(s[-1].shape))
    frozen = reference.fused_response(arrays(s)[0], ackd_nets(loss, trained=False), loss.signed)

    def value(adversarial):
        nets = ackd_nets(loss, trained=False)
        parts = reference.parts(*arrays(s, t), nets, labels, 2.0, loss.signed, frozen)
        return sum(w * part for w, part in zip((*ACKD_WEIGHTS.values(), adversarial), parts, strict=True))

    judges = [(key, p) for key, p in loss.named_parameters() if key.startswith('discriminate')]
    others = [(key, p) for key, p in loss.named_parameters() if not key.startswith('discriminate')]
    assert len(judges) == 4
    assert_slopes(lambda: value(1.0), judges)
    assert_slopes(lambda: value(-0.3), [*((f'student {i}', x) for i, x in enumerate(s)), *others])


def test_without_a_query_the_fusion_is_the_mean_and_a_loud_one_chooses():
    e = feats(1, (3, 2, 5, 4))
    torch.testing.assert_close(attention_fusion(e, torch.zeros(4).double()), e.mean(0))
    query = torch.tensor([1000.0, 0, 0, 0], dtype=torch.float64)
    best = e[..., 0].argmax(0)
    chosen = torch.stack([torch.stack([e[best[n, p], n, p] for p in range(5)]) for n in range(2)])
    torch.testing.assert_close(attention_fusion(e, query), chosen)


def test_a_discriminator_that_cannot_tell_loses_log_two():
    zero = torch.zeros(6)
    assert discriminator_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert discriminator_loss(zero - 20, zero + 20) < 1e-6
    assert discriminator_loss(zero + 20, zero - 20) > 19


def test_the_discriminator_learns_to_tell_and_the_learners_to_pass():
    """By the same backward: first it steps alone, and its loss falls; then they do, and it rises again."""
    torch.manual_seed(0)
    cfg = dict(student_channels=[2, 3], teacher_channels=[2, 3], signed=[True, True], norm_cfg=None, head_channels=16)
    weights = dict(auxiliary_weight=0.0, teacher_weight=0.0, fused_weight=0.0, adversarial_weight=1.0)
    loss = MODELS.build(dict(type='mmsokd.ACKDLoss', **cfg, **weights))
    logits = torch.zeros(64, 3)
    levels = [torch.randn(64, 2, 2, 2), logits], [torch.randn(64, 2, 2, 2) + 2, logits]

    def play(part, steps):
        optimizer = torch.optim.SGD(part.parameters(), lr=0.3)
        for _ in range(steps):
            loss.zero_grad()
            loss(*levels).loss.backward()
            optimizer.step()
        return loss(*levels).loss.item()

    start = loss(*levels).loss.item()
    told = play(loss.discriminate, 100)
    assert told < 0.3 < start
    assert play(loss.learners, 100) > told + 0.3


def test_without_weight_the_student_is_not_touched_and_no_class_asked_for():
    name = NAMES[0]
    loss, (s, t) = build(name), sides(name, 0)
    loss.weights, loss.adversarial_weight = [0.0, 0.0, 0.0], 0.0
    s = [x.requires_grad_() for x in s]
    loss(s, t, samples=None).loss.backward()
    assert not any(x.grad.any() for x in s)
    assert all(p.grad is not None for p in loss.parameters())  # DDP waits for all of them
    learns = {key.split('.')[0] for key, p in loss.named_parameters() if p.grad.any()}
    assert learns == {'discriminate'}


def test_what_is_ignored_teaches_the_learners_nothing():
    """A class that is left out by ``ignore_index`` is as one that nobody knows, and not as one that is told."""
    name, index = next((name, i) for name, i in SHAPES if len(CASES[name].shapes[i][0][-1]) == 4)
    loss, (s, t) = build(name), sides(name, index)
    samples = more(name, s)['samples']
    unknown = copy.deepcopy(samples)
    for sample in unknown:
        plane = sample.gt_sem_seg.data
        plane[plane == 0] = 255
    told, expected = (loss(s, t, samples=x).stats['ackd.auxiliary'] for x in (samples, unknown))
    loss.ignore_index = 0
    torch.testing.assert_close(loss(s, t, samples=samples).stats['ackd.auxiliary'], expected)
    assert abs(told - expected) > 1e-4


def test_targets_are_constants():
    """The output learns from the fused response, and that not from the output."""
    loss, (s, t) = build(NAMES[0]), sides(NAMES[0], 0)
    loss.weights, loss.adversarial_weight = [0.0, 0.0, 1.0], 0.0
    s = [x.requires_grad_() for x in s]
    loss(s, t, **more(NAMES[0], s)).loss.backward()
    assert [bool(x.grad.any()) for x in s] == [False, False, True]
    with torch.no_grad():
        response = loss.classify(loss.learn(s[:-1], s[-1])[1])[:, 0]
    (slope,) = torch.autograd.grad(kd_loss(s[-1], response, 2.0), s[-1])
    torch.testing.assert_close(s[-1].grad, slope)


def test_all_of_it_learns():
    loss, (s, t) = build(NAMES[1]), sides(NAMES[1], 1)
    loss(s, t, **more(NAMES[1], s)).loss.backward()
    assert not {name for name, p in loss.named_parameters() if p.grad.abs().sum() < 1e-9}


def build_with(**kwargs):
    cfg = dict(student_channels=[2, 3, 4], teacher_channels=[4, 2, 4], signed=[False, False, True])
    return MODELS.build(dict(type='mmsokd.ACKDLoss', **{**cfg, **kwargs}))


LEVELS = 'ACKDLoss: expected stages and, last, the output, of one number of classes on both sides, found channels '
WRONG = [
    (dict(auxiliary_weight=-1), 'ACKDLoss.auxiliary_weight: expected a number >= 0, found -1'),
    (dict(teacher_weight='1'), "ACKDLoss.teacher_weight: expected a number >= 0, found '1'"),
    (dict(fused_weight=None), 'ACKDLoss.fused_weight: expected a number >= 0, found None'),
    (dict(adversarial_weight=float('nan')), 'ACKDLoss.adversarial_weight: expected a number >= 0, found nan'),
    (dict(tau=0), 'ACKDLoss.tau: expected a number > 0, found 0'),
    (dict(head_channels=0), 'ACKDLoss.head_channels: expected an integer >= 1, found 0'),
    (dict(norm_cfg=dict(type='GN', num_groups=3)), 'ACKDLoss.norm_cfg.num_groups: expected a divisor of the 64'),
    (dict(ignore_index='a'), "ACKDLoss.ignore_index: expected an integer, found 'a'"),
    (dict(student_channels=[4], teacher_channels=[4], signed=[True]), LEVELS + '[4] of the student and [4] of'),
    (dict(student_channels=[2, 3, 5]), LEVELS + '[2, 3, 5] of the student and [4, 2, 4] of the teacher; tap a list'),
    (dict(student_channels=[2, 3, 1], teacher_channels=[2, 3, 1]), 'ACKDLoss: expected at least 2 classes'),
]


@pytest.mark.parametrize(('wrong', 'message'), WRONG)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_with(**wrong)


@pytest.mark.parametrize('side', [0, 1])
def test_a_stage_that_is_no_map_is_refused(side):
    x = [torch.zeros(2, 2, 4, 4), torch.zeros(2, 2), torch.zeros(2, 4)]
    levels = [[torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 2, 2), torch.zeros(2, 4)] for _ in range(2)]
    levels[side] = x
    loss = build_with(student_channels=[2, 2, 4], norm_cfg=None)
    with pytest.raises(ValueError, match=r'expected maps \(N, C, H, W\) for all stages, found \(2, 2\)'):
        loss(*levels, samples=classes((2, 4)))
