"""FitNet, AT and PKD."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import at_loss, fitnet_loss, pkd_loss
from tests.losses import common


def feats(seed=0, channels=3):
    return common.feats(seed, (4, channels, 5, 6))


@pytest.mark.parametrize('loss', [fitnet_loss, pkd_loss, at_loss])
def test_two_halves_make_the_whole(loss):
    s, t, left = feats(1), feats(2), torch.ones(4, 1, 5, 6)
    left[..., 3:] = 0
    torch.testing.assert_close((loss(s, t, left) + loss(s, t, 1 - left)) / 2, loss(s, t))


def test_fitnet_looks_inside_the_areas_only():
    s, t, weight = feats(1), feats(2), torch.zeros(4, 1, 5, 6)
    weight[:, :, 1:3, 2:4] = 1
    expected = ((s - t)[:, :, 1:3, 2:4] ** 2).mean()
    torch.testing.assert_close(fitnet_loss(s, t, weight), expected)


@given(st.integers(0, 999), st.floats(0.1, 100))
def test_normalized_fitnet_knows_no_scale(seed, scale):
    s, t, weight = feats(seed), feats(seed + 1), (feats(seed + 2, 1) > 0).double()
    found = fitnet_loss(scale * s, scale * t, weight, normalized=True)
    torch.testing.assert_close(found, fitnet_loss(s, t, weight) / t.square().mean())
    silent = fitnet_loss(0 * t, scale * t, normalized=True)
    torch.testing.assert_close(silent, torch.ones_like(silent))


def test_normalized_fitnet_does_not_ask_for_a_louder_teacher():
    """As where a policy is searched through the loss: the gradient for the teacher is that of the error."""
    s, t = feats(1), feats(2).requires_grad_()
    fitnet_loss(s, t, normalized=True).backward()
    torch.testing.assert_close(t.grad, 2 * (t - s).detach() / t.numel() / t.detach().square().mean())


def test_normalized_fitnet_of_a_silent_teacher_is_the_plain_one():
    """Else a level that is nearly blank would rule all others."""
    s, t = feats(1), torch.zeros_like(feats(1))
    for value in (0.0, 1e-6):
        t[0, 0, 0, 0] = value
        torch.testing.assert_close(fitnet_loss(s, t, normalized=True), fitnet_loss(s, t))


@given(st.integers(0, 999), st.floats(0.1, 10), st.floats(-5, 5))
def test_pkd_ignores_scale_and_shift(seed, scale, shift):
    s, t = feats(seed), feats(seed + 1)
    torch.testing.assert_close(pkd_loss(scale * s + shift, t), pkd_loss(s, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('constant', [0.0, 1000.3])
def test_pkd_leaves_a_dead_channel_alone(constant):
    s, t = feats(1).float(), feats(2).float()
    s[:, 0] = constant
    s.requires_grad_()
    loss = pkd_loss(s, t)
    loss.backward()
    assert not s.grad[:, 0].any()
    assert s.grad[:, 1:].abs().sum() > 0
    live = pkd_loss(s[:, 1:], t[:, 1:])
    torch.testing.assert_close(loss, (2 * live + 0.5) / 3)  # r = 0 there, and half of the teacher's unit variance


@pytest.mark.parametrize('std', [1e-7, 1e-13, 1e-20])
def test_pkd_takes_no_direction_from_a_nearly_dead_channel(std):
    s, t = feats(1).float(), feats(2).float()
    s[:, 0] *= std
    s.requires_grad_()
    pkd_loss(s, t).backward()
    assert not s.grad[:, 0].any()
    assert s.grad[:, 1:].abs().sum() > 0


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_at_ignores_scale_and_sign(seed, scale):
    s, t = feats(seed), feats(seed + 1, channels=7)  # the channels may differ
    torch.testing.assert_close(at_loss(-scale * s, t), at_loss(s, t), rtol=1e-5, atol=1e-8)
