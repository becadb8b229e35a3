"""MTKD-SSR: its four parts, what is a constant in them, and which levels it takes."""

import math
import re

import numpy as np
import pytest
import torch

from mmsokd.losses import channel_loss, kd_loss, review_loss
from mmsokd.losses.targets import cross_entropy
from mmsokd.registry import MODELS
from tests.losses.cases import CASES, SSR, build, classes, more, ssr_labels, ssr_nets
from tests.losses.common import arrays, assert_agrees, assert_slopes, feats, relative_error
from tests.reference import mtkdssr as reference
from tests.reference.plain import softmax

NAMES = 'MTKDSSRLoss', 'MTKDSSRLoss of given responses'
HOW = {NAMES[0]: dict(tau=2.0), NAMES[1]: dict(tau=2.0, activation='sigmoid', review='all')}
SHAPES = [(name, i) for name in NAMES for i in range(len(CASES[name].shapes))]


def sides(name, index, seed=1):
    return [feats(seed + i, shape) for i, shape in enumerate(CASES[name].shapes[index])]


@pytest.mark.parametrize(('name', 'index'), SHAPES)
def test_each_part_against_the_slow_twin(name, index):
    loss, (s, t) = build(name), sides(name, index)
    found = loss(s, t, **more(name, s))
    nets, labels = ssr_nets(loss), ssr_labels(tuple(s[-1].shape))
    parts = reference.parts(*arrays(s, t), nets, labels, **HOW[name])
    errors = [
        relative_error(value, part) for value, part in zip(found.stats.values(), parts, strict=True) if part or value
    ]
    assert_agrees(f'parts of {name}', errors)
    assert len(errors) == (4 if loss.student_heads else 3)
    whole = sum(weight * part for weight, part in zip(SSR.values(), parts, strict=True))
    assert_agrees(name, [relative_error(found.loss, whole)])


@pytest.mark.parametrize(('name', 'index'), SHAPES)
def test_gradient_against_finite_differences_of_the_slow_twin(name, index):
    """In which a target is held fixed while what learns from it is moved; autograd must see the same."""
    loss, (s, t) = build(name), sides(name, index)
    loss(s, t, **more(name, s))  # statistics to be used in eval mode
    loss.eval()
    s, t = ([x.requires_grad_() for x in side] for side in (s, t))
    loss(s, t, **more(name, s)).loss.backward()
    labels = ssr_labels(tuple(s[-1].shape))
    stages, nets = loss.num_stages, ssr_nets(loss, trained=False)
    heads = nets['student'], nets['teacher']
    frozen = [
        [x.copy() for x in reference.responses(side, stages, h)] for side, h in zip(arrays(s, t), heads, strict=True)
    ]
    weights = list(SSR.values())

    def value():
        nets = ssr_nets(loss, trained=False)
        parts = reference.parts(*arrays(s, t), nets, labels, frozen=frozen, **HOW[name])
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    assert_slopes(value, [*((f'student {i}', x) for i, x in enumerate(s)), *loss.named_parameters()])


def test_targets_are_constants():
    """No head of the teacher learns from the student, and no deeper stage from what reviews it."""
    loss, (s, t) = build(NAMES[0]), sides(NAMES[0], 0)
    loss.weights = [0.0, 1.0, 0.0, 0.0]  # responses
    loss(s, t, **more(NAMES[0], s)).loss.backward()
    assert all(not p.grad.any() for p in loss.teacher_heads.parameters())
    assert any(p.grad.any() for p in loss.student_heads.parameters())
    responses = [feats(i, (3, 4)).requires_grad_() for i in range(3)]
    review_loss(responses).backward()
    assert [x.grad is not None and bool(x.grad.any()) for x in responses] == [True, True, False]


def test_without_weight_the_auxiliary_part_asks_for_no_classes():
    loss, (s, t) = build(NAMES[0]), sides(NAMES[0], 0)
    loss.weights = [1.0, 0.0, 1.0, 0.0]
    loss(s, t, samples=None).loss.backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_review_of_the_next_and_of_all_deeper_stages():
    a, b, c = (feats(i, (3, 4)) for i in range(3))
    torch.testing.assert_close(review_loss([a, b, c], 2.0), kd_loss(a, b, 2.0) + kd_loss(b, c, 2.0))
    every = review_loss([a, b, c], 2.0) + kd_loss(a, c, 2.0)
    torch.testing.assert_close(review_loss([a, b, c], 2.0, review='all'), every)
    assert review_loss([a]) == 0


def test_channels_are_compared_by_their_means_alone():
    s = feats(1)
    torch.testing.assert_close(channel_loss(s, s.flip(2, 3)), torch.tensor(0.0).double(), rtol=0, atol=1e-30)
    torch.testing.assert_close(channel_loss(s, s[..., :1] + 3), channel_loss(s[..., :1] + 3, s))


def test_responses_of_the_published_anchor_are_those_of_kd():
    """Without heads, channels and review it is KD on the output."""
    cfg = dict(channel_weight=0.0, review_weight=0.0, tau=3.0, norm_cfg=None, signed=[False, True])
    loss = MODELS.build(dict(type='mmsokd.MTKDSSRLoss', student_channels=[2, 4], teacher_channels=[3, 4], **cfg))
    s, t = [feats(1, (3, 2, 4, 4)), feats(2, (3, 4))], [feats(3, (3, 3, 2, 2)), feats(4, (3, 4))]
    torch.testing.assert_close(loss.double()(s, t).loss, kd_loss(s[1], t[1], 3.0))


def test_cross_entropy_over_what_has_a_class():
    x, y = feats(1, (2, 4, 3, 3)), torch.arange(18).view(2, 3, 3) % 5 - 1
    rows = x.movedim(1, -1).reshape(-1, 4).tolist()
    values = [-math.log(softmax(row)[k]) for row, k in zip(rows, y.flatten().tolist(), strict=True) if k >= 0]
    torch.testing.assert_close(cross_entropy(x, y).item(), np.mean(values).item(), rtol=1e-12, atol=0)
    x.requires_grad_()
    nothing = cross_entropy(x, torch.full_like(y, -1))
    nothing.backward()
    assert nothing == 0
    assert not x.grad.any()


def test_heads_of_both_sides_learn():
    loss, (s, t) = build(NAMES[0]), sides(NAMES[0], 0)
    loss(s, t, **more(NAMES[0], s)).loss.backward()
    silent = {name for name, p in loss.named_parameters() if p.grad.abs().sum() < 1e-9}
    assert not silent


def build_with(**kwargs):
    cfg = dict(student_channels=[2, 3, 4], teacher_channels=[4, 2, 4], signed=[False, False, True])
    return MODELS.build(dict(type='mmsokd.MTKDSSRLoss', **{**cfg, **kwargs}))


WRONG = [
    (dict(channel_weight=-1), 'channel_weight: expected a number >= 0, found -1'),
    (dict(response_weight='1'), "response_weight: expected a number >= 0, found '1'"),
    (dict(review_weight=None), 'review_weight: expected a number >= 0, found None'),
    (dict(auxiliary_weight=float('nan')), 'auxiliary_weight: expected a number >= 0, found nan'),
    (dict(auxiliary_weight=0), 'auxiliary_weight: expected a number > 0, by which alone'),
    (dict(tau=0), 'tau: expected a number > 0, found 0'),
    (dict(activation='sigmoids'), "activation: expected one of ['softmax', 'sigmoid'], found 'sigmoids'"),
    (dict(activation='sigmoid'), "activation: expected 'softmax', in which the auxiliary heads learn"),
    (dict(review='every'), "review: expected one of ['next', 'all'], found 'every'"),
    (dict(num_responses=0), 'num_responses: expected an integer >= 1, found 0'),
    (dict(num_responses=2), 'num_responses: expected 1, all, or half of the levels, at least two, found 2 of 3'),
    (dict(num_responses=4), 'num_responses: expected 1, all, or half of the levels, at least two, found 4 of 3'),
    (dict(student_channels=[4], teacher_channels=[4]), 'num_responses: expected 1, all, or half of the levels'),
    (dict(head_channels=1.5), 'head_channels: expected an integer >= 1, found 1.5'),
    (dict(ignore_index='a'), "ignore_index: expected an integer, found 'a'"),
    (dict(norm_cfg=dict(type='GN', num_groups=3)), 'norm_cfg.num_groups: expected a divisor of the 4 channels'),
]


@pytest.mark.parametrize(('wrong', 'message'), WRONG)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(f'MTKDSSRLoss.{message}')):
        build_with(**wrong)


def test_auxiliary_heads_that_nobody_follows_need_not_learn():
    build_with(auxiliary_weight=0, response_weight=0)
    build_with(
        auxiliary_weight=0,
        num_responses=2,
        student_channels=[2, 3, 4, 4],
        teacher_channels=[4, 2, 4, 4],
        signed=[False] * 4,
    )


def test_responses_of_unequal_classes_are_refused():
    with pytest.raises(ValueError, match=r'one number of classes, found \[5\] of the student and \[4\] of the teacher'):
        build_with(student_channels=[2, 3, 5])


def test_a_stage_that_is_no_map_is_refused():
    x = [torch.zeros(2, 2, 4, 4), torch.zeros(2, 3), torch.zeros(2, 4)]
    with pytest.raises(ValueError, match=r'expected maps \(N, C, H, W\) for all stages, found \(2, 3\)'):
        build_with(norm_cfg=None)(x, x, samples=classes((2, 4)))
