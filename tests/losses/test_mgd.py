import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmsokd.losses import MGDLoss, mgd_loss
from mmsokd.losses.mgd import draw_mask
from tests.losses.common import feats, shake


@given(st.integers(0, 999))
def test_what_is_hidden_has_no_say(seed):
    s, t, other = feats(seed), feats(seed + 1), feats(seed + 2)
    mask = draw_mask(s, 0.5)
    generate = nn.Conv2d(3, 3, 3, padding=1).double()
    swapped = torch.where(mask > 0, s, other)
    assert torch.equal(mgd_loss(swapped, t, mask, generate), mgd_loss(s, t, mask, generate))


@pytest.mark.parametrize('ratio', [0.0, 0.25, 0.65])
def test_share_that_is_hidden(ratio):
    mask = draw_mask(torch.zeros(50, 7, 20, 20), ratio)
    assert mask.shape == (50, 1, 20, 20)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert abs((mask == 0).float().mean().item() - ratio) < 4 * (0.25 / mask.numel()) ** 0.5  # 4 standard deviations
    if ratio:
        assert not torch.equal(mask[0], mask[1])  # each sample its own


def test_each_step_draws_anew():
    loss, s, t = shake(MGDLoss(3)), feats(1), feats(2)
    assert loss(s, t) != loss(s, t)


def test_weights_choose_where_the_restored_feature_counts():
    s, t = feats(1), feats(2)
    mask, generate = torch.ones(2, 1, 5, 6), nn.Identity()
    whole = mgd_loss(s, t, mask, generate)
    torch.testing.assert_close(whole, ((s - t) ** 2).sum() / 2)
    for scale in (1.0, 3.0):
        torch.testing.assert_close(mgd_loss(s, t, mask, generate, scale * torch.ones(2, 1, 5, 6)), whole)
    window = torch.zeros(2, 1, 5, 6)
    window[:, :, 1:3, 2:4] = 1
    inside = ((s - t)[:, :, 1:3, 2:4] ** 2).mean() * 3 * 5 * 6
    torch.testing.assert_close(mgd_loss(s, t, mask, generate, window), inside)
    assert mgd_loss(s, t, mask, generate, 0 * window) == 0
