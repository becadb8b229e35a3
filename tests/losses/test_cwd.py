import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import cwd_loss
from tests.losses.common import feats


@given(st.integers(0, 999), st.floats(-50, 50))
def test_a_shift_of_a_channel_changes_nothing(seed, shift):
    s, t = feats(seed), feats(seed + 1)
    moved = s.clone()
    moved[:, 1] += shift
    torch.testing.assert_close(cwd_loss(moved, t), cwd_loss(s, t))
    assert cwd_loss(t + shift, t) < 1e-12
    assert cwd_loss(s, t) > 1e-3


def test_channels_and_samples_count_alike():
    s, t = feats(1), feats(2)
    for axis in (0, 1):
        parts = [cwd_loss(a, b) for a, b in zip(s.split(1, axis), t.split(1, axis), strict=True)]
        torch.testing.assert_close(torch.stack(parts).mean(), cwd_loss(s, t))


def test_hot_limit_is_the_mean_squared_difference_of_the_centred_maps():
    """tau^2 KL tends to the sum over the positions of the squared difference over 2 HW, as KD's does (1503.02531)."""
    s, t = feats(1), feats(2)
    d = (s - t) - (s - t).mean((2, 3), keepdim=True)
    torch.testing.assert_close(cwd_loss(s, t, tau=1e4), 0.5 * (d**2).mean(), rtol=1e-3, atol=0)


def test_a_map_of_one_cell_says_nothing():
    assert cwd_loss(feats(1, (2, 3, 1, 1)), feats(2, (2, 3, 1, 1))) == 0
