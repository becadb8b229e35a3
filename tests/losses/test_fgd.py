import pytest
import torch

from mmsokd.losses import FGDLoss, fgd_focal_loss
from mmsokd.losses.fgd import GlobalContext, attention_maps, focal_masks
from tests.losses.common import boxed, feats, shake

BOXES = [[(4, 6, 30, 20), (10, 0, 17, 40)], []]  # pixels of a 40 x 48 batch


def test_attention_has_mean_one_and_sharpens_as_it_cools():
    spatial, channel = attention_maps(feats(1), 0.5)
    torch.testing.assert_close(spatial.mean((2, 3)), torch.ones(2, 1, dtype=torch.float64))
    torch.testing.assert_close(channel.mean(1).flatten(), torch.ones(2, dtype=torch.float64))
    hot, cold = attention_maps(feats(1), 1e6)[0], attention_maps(feats(1), 1e-3)[0]
    torch.testing.assert_close(hot, torch.ones_like(hot), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cold.amax((2, 3)), torch.full((2, 1), 30.0, dtype=torch.float64))


def test_equal_features_cost_nothing_before_the_relations_part():
    loss, t = FGDLoss(3).double(), feats(2)
    assert loss(t.clone(), t, samples=boxed(BOXES)) == 0
    assert loss(feats(1), t, samples=boxed(BOXES)) > 1e-6


def test_each_weight_weighs_its_part():
    s, t = feats(1), feats(2)
    masks = [m.double() for m in focal_masks(torch.tensor([[[1.0, 1, 3, 3]]] * 2), (5, 6))]
    alpha, beta, gamma = (fgd_focal_loss(s, t, masks, *(float(i == k) for i in range(3))) for k in range(3))
    torch.testing.assert_close(fgd_focal_loss(s, t, masks, 2.0, 3.0, 5.0), 2 * alpha + 3 * beta + 5 * gamma)
    inside, outside = s.clone(), s.clone()
    inside[:, :, 1:3, 1:3] += 1
    outside[:, :, 4] += 1
    assert fgd_focal_loss(outside, t, masks, 1.0, 0.0, 0.0) == alpha
    assert fgd_focal_loss(inside, t, masks, 0.0, 1.0, 0.0) == beta
    assert fgd_focal_loss(inside, t, masks, 1.0, 0.0, 0.0) != alpha


def test_relation_starts_as_published():
    """Kaiming's normal distribution by fan-in, of variance 2 / fan: with 4 standard deviations of the estimate."""
    weight = GlobalContext(1024).key.weight
    assert abs(weight.var().item() * 1024 / 2 - 1) < 4 * (2 / 1024) ** 0.5


def test_relation_starts_as_the_identity_and_adds_one_vector_a_sample():
    relation, feat = GlobalContext(4).double(), feats(1, (2, 4, 5, 6))
    assert torch.equal(relation(feat), feat)
    added = shake(relation)(feat) - feat
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    order = torch.randperm(30)
    mixed = feat.flatten(2)[:, :, order].view_as(feat)
    torch.testing.assert_close(relation(mixed) - mixed, added)  # the context knows no positions


def test_samples_without_boxes_are_refused():
    with pytest.raises(ValueError, match='ground-truth boxes'):
        FGDLoss(3)(feats(1).float(), feats(2).float())
