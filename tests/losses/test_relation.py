"""RKD and SP: how the pictures of a batch lie to each other; channels may differ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import rkd_loss, sp_loss
from tests.losses import common
from tests.losses.cases import build

RELATIONS = ('RKDLoss', 'SPLoss')


def feats(seed, shape=(5, 3)):
    return common.feats(seed, shape)


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_rkd_ignores_a_move_a_turn_and_the_scale(seed, scale):
    s, t = feats(seed), feats(seed + 1, (5, 4))
    turn = torch.linalg.qr(feats(seed + 2, (3, 3)))[0]
    torch.testing.assert_close(rkd_loss(scale * s @ turn + feats(seed + 3, (1, 3)), t), rkd_loss(s, t))


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_sp_ignores_a_turn_and_the_scale_of_the_batch(seed, scale):
    s, t = feats(seed), feats(seed + 1, (5, 4))
    turn = torch.linalg.qr(feats(seed + 2, (3, 3)))[0]
    torch.testing.assert_close(sp_loss(scale * s @ turn, t), sp_loss(s, t))
    assert abs(sp_loss(s + 1, t) - sp_loss(s, t)) > 1e-6  # but it does see a move


@pytest.mark.parametrize('name', RELATIONS)
def test_order_of_the_pictures_does_not_matter(name):
    s, t, order = feats(1), feats(2, (5, 4)), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(build(name)(s[order], t[order]), build(name)(s, t))


def test_weights_of_rkds_parts():
    s, t = feats(1), feats(2)
    parts = rkd_loss(s, t, 1.0, 0.0), rkd_loss(s, t, 0.0, 1.0)
    torch.testing.assert_close(rkd_loss(s, t), 25 * parts[0] + 50 * parts[1])
    assert min(parts) > 0


@pytest.mark.parametrize('name', RELATIONS)
def test_a_batch_of_one_says_nothing(name):
    s = feats(1, (1, 3, 2, 2)).requires_grad_()
    value = build(name)(s, feats(2, (1, 4, 2, 2)))
    value.backward()
    assert value < 1e-12
    assert s.grad.abs().max() < 1e-12


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e-15, 1.0, 1e6])
@pytest.mark.parametrize('name', RELATIONS)
def test_degenerate_features_stay_finite(name, scale):
    some = feats(1, (4, 3)).float()
    twins = some.clone()
    twins[1] = twins[0]
    for s in (scale * some, scale * twins, scale * torch.ones(4, 3)):
        for t in (torch.zeros(4, 3), twins):
            pair = s.clone().requires_grad_(), t.clone().requires_grad_()
            value = build(name)(*pair)
            value.backward()
            assert value.isfinite()
            assert all(x.grad.isfinite().all() for x in pair)


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r'\(N, C\) or a map \(N, C, H, W\) a picture, found \(2, 7, 3\)'):
        rkd_loss(torch.zeros(2, 7, 3), torch.zeros(2, 7, 3))
