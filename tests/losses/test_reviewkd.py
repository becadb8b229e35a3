import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import ReviewKDLoss, hcl_loss
from tests.losses.dense import arrays, assert_agrees, check_gradient, feats
from tests.reference import dense as reference

SHAPES = [(2, 3, 8, 8), (2, 3, 5, 6), (2, 3, 7, 2), (1, 2, 2, 2), (1, 2, 1, 4), (1, 2, 4, 4), (2, 2, 1, 1)]


@pytest.mark.parametrize('shape', SHAPES)
def test_against_the_slow_twin(shape):
    s, t = feats(1, shape), feats(2, shape)
    assert_agrees('ReviewKDLoss', ReviewKDLoss()(s, t), reference.hcl(*arrays(s, t)))
    weight = feats(3, (shape[0], 1, *shape[2:])).relu() + 0.01
    assert_agrees('ReviewKDLoss, weighted', ReviewKDLoss()(s, t, weight), reference.hcl(*arrays(s, t, weight)))


@pytest.mark.parametrize('weighted', [False, True])
def test_gradient_against_finite_differences(weighted):
    weight = (feats(3, (2, 1, 5, 3)) > 0).double() if weighted else None
    assert check_gradient(lambda s, t: hcl_loss(s, t, weight), feats(1, (2, 2, 5, 3)), feats(2, (2, 2, 5, 3)))


def test_a_constant_difference_counts_alike_at_every_scale():
    """And one that each pooled cell averages out counts at the full resolution only: 1 of 1 + 1/2 + 1/4 + 1/8."""
    t = feats(2, (2, 3, 8, 8))
    torch.testing.assert_close(hcl_loss(t + 3, t).item(), 9.0)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    torch.testing.assert_close(hcl_loss(t + checks, t).item(), 1 / 1.875)


def test_weight():
    s, t, ones = feats(1), feats(2), torch.ones(2, 1, 5, 6)
    for scale in (1.0, 3.0, 1e-4):
        torch.testing.assert_close(hcl_loss(s, t, scale * ones), hcl_loss(s, t))
    assert hcl_loss(s, t, 0 * ones) == 0


@given(st.integers(0, 999), st.floats(-100, 100))
def test_what_lies_outside_of_the_areas_has_no_say(seed, noise):
    s, t, weight = feats(seed), feats(seed + 1), torch.zeros(2, 1, 5, 6)
    weight[:, :, 1:4, 2:4] = 1
    other = torch.where(weight > 0, s, s + noise * feats(seed + 2))
    torch.testing.assert_close(hcl_loss(other, t, weight), hcl_loss(s, t, weight))


def test_zero_for_equal_features_only():
    s, t = feats(1), feats(2)
    assert hcl_loss(t.clone(), t) == 0
    assert hcl_loss(s, t) > 1e-3
