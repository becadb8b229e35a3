import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.adapters import ConvAdapter
from mmsokd.losses import VIDLoss, vid_loss
from tests.builders import distiller, retinanet
from tests.losses.common import feats


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


@pytest.mark.parametrize('kind', ['Distiller', 'SoKDDistiller'])
def test_the_mean_is_learned_even_where_the_channels_agree(kind):
    term = dict(type='mmsokd.VIDLoss', tap='neck')
    pair = dict(student=retinanet(16), teacher=retinanet(16))
    model = distiller(kind, terms=dict(loss_host=term), **pair)
    for adapter in model.terms['loss_host'].adapter:
        assert isinstance(adapter, ConvAdapter)
        assert not adapter.conv.with_norm  # SoKD's options are not for it
    plain = distiller(
        kind, teacher=retinanet(16), student=retinanet(16), terms=dict(loss_host=dict(term, adapter=None))
    )
    assert not list(plain.terms['loss_host'].adapter.parameters())
