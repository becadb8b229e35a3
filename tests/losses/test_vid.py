import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import VIDLoss, vid_loss
from tests.losses.dense import arrays, assert_agrees, check_gradient, feats, shake
from tests.reference import dense as reference


@pytest.mark.parametrize('seed', range(3))
def test_against_the_slow_twin(seed):
    loss, s, t = shake(VIDLoss(3), seed), feats(seed), feats(seed + 10)
    variance = torch.log(1 + torch.exp(loss.raw)) + 1e-5
    assert_agrees('VIDLoss', loss(s, t), reference.vid(*arrays(s, t, variance)))


def test_gradient_against_finite_differences():
    assert check_gradient(shake(VIDLoss(3)), feats(1), feats(2))


@pytest.mark.parametrize('start', [5.0, 0.01, 100.0])
def test_variances_start_where_they_are_told(start):
    torch.testing.assert_close(VIDLoss(4, init_variance=start).variance, torch.full((4,), start), rtol=1e-4, atol=0)


@given(st.integers(0, 999))
def test_the_best_variance_is_the_mean_squared_error_of_the_channel(seed):
    s, t = feats(seed), feats(seed + 1)
    best = ((s - t) ** 2).mean((0, 2, 3))
    least = vid_loss(s, t, best)
    for factor in (0.8, 1.25):
        assert vid_loss(s, t, factor * best) > least
    torch.testing.assert_close(least, 0.5 + 0.5 * best.log().mean())


def test_equal_features_are_the_best_mean():
    t, variance = feats(2), torch.tensor([0.5, 1.0, 2.0]).double()
    assert vid_loss(t.clone(), t, variance) < vid_loss(t + 1e-3, t, variance)


def test_weight():
    s, t, variance = feats(1), feats(2), torch.tensor([0.5, 1.0, 2.0]).double()
    ones = torch.ones(2, 1, 5, 6)
    torch.testing.assert_close(vid_loss(s, t, variance, 3 * ones), vid_loss(s, t, variance))
    window = torch.zeros(2, 1, 5, 6)
    window[:, :, 1:3, 2:4] = 1
    inside = vid_loss(s[:, :, 1:3, 2:4], t[:, :, 1:3, 2:4], variance)
    torch.testing.assert_close(vid_loss(s, t, variance, window), inside)


@pytest.mark.parametrize(('start', 'eps'), [(1e-6, 1e-5), (5.0, 0.0)])
def test_bad_variance(start, eps):
    with pytest.raises(ValueError, match=r'VIDLoss\.init_variance: expected eps > 0 and a number above it'):
        VIDLoss(3, start, eps)
