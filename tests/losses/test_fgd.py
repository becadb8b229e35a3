import pytest
import torch

from mmsokd.losses import FGDLoss, fgd_focal_loss
from mmsokd.losses.fgd import GlobalContext, attention_maps, focal_masks
from tests.losses.dense import arrays, assert_agrees, check_gradient, feats, samples, shake
from tests.reference import dense as reference

BOXES = [[(4, 6, 30, 20), (10, 0, 17, 40)], []]  # pixels of a 40 x 48 batch
WEIGHTS = dict(alpha=0.7, beta=0.3, gamma=0.2, lambda_=0.1, temperature=0.5)  # of one size, so that none hides


def block(relation):
    down, norm, _, up = relation.transform
    return dict(
        key=relation.key.weight.detach().numpy().reshape(-1),
        key_bias=relation.key.bias.item(),
        down=down.weight.detach().numpy()[..., 0, 0],
        down_bias=down.bias.detach().numpy(),
        norm=norm.weight.detach().numpy().reshape(-1),
        norm_bias=norm.bias.detach().numpy().reshape(-1),
        up=up.weight.detach().numpy()[..., 0, 0],
        up_bias=up.bias.detach().numpy(),
    )


@pytest.mark.parametrize('seed', range(3))
def test_against_the_slow_twin(seed):
    shape = (2, 4, 5, 6)
    loss, s, t = shake(FGDLoss(4, **WEIGHTS), seed), feats(seed, shape), feats(seed + 10, shape)
    in_cells = [[[v / 8 for v in box] for box in picture] for picture in BOXES]
    blocks = block(loss.student_relation), block(loss.teacher_relation)
    expected = reference.fgd(*arrays(s, t), in_cells, blocks, **WEIGHTS)
    assert_agrees('FGDLoss', loss(s, t, samples=samples(BOXES)), expected)


def test_gradient_against_finite_differences():
    batch = samples(BOXES)

    class WithBoxes(FGDLoss):
        def forward(self, s, t):
            return super().forward(s, t, batch)

    shape = (2, 4, 2, 3)
    assert check_gradient(shake(WithBoxes(4, **WEIGHTS)), feats(1, shape), feats(2, shape))


def test_attention_has_mean_one_and_sharpens_as_it_cools():
    spatial, channel = attention_maps(feats(1), 0.5)
    torch.testing.assert_close(spatial.mean((2, 3)), torch.ones(2, 1, dtype=torch.float64))
    torch.testing.assert_close(channel.mean(1).flatten(), torch.ones(2, dtype=torch.float64))
    hot, cold = attention_maps(feats(1), 1e6)[0], attention_maps(feats(1), 1e-3)[0]
    torch.testing.assert_close(hot, torch.ones_like(hot), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cold.amax((2, 3)), torch.full((2, 1), 30.0, dtype=torch.float64))


def test_equal_features_cost_nothing_before_the_relations_part():
    loss, t = FGDLoss(3).double(), feats(2)
    assert loss(t.clone(), t, samples=samples(BOXES)) == 0
    assert loss(feats(1), t, samples=samples(BOXES)) > 1e-6


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


def test_relation_starts_as_the_identity_and_adds_one_vector_a_sample():
    relation, feat = GlobalContext(4).double(), feats(1, (2, 4, 5, 6))
    assert torch.equal(relation(feat), feat)
    added = shake(relation)(feat) - feat
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    order = torch.randperm(30)
    mixed = feat.flatten(2)[:, :, order].view_as(feat)
    torch.testing.assert_close(relation(mixed) - mixed, added)  # the context knows no positions


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'FGDLoss\.beta: expected a number >= 0, found -1'):
        FGDLoss(4, beta=-1)
    with pytest.raises(ValueError, match=r'FGDLoss\.temperature: expected a number > 0, found 0'):
        FGDLoss(4, temperature=0)
    with pytest.raises(ValueError, match='ground-truth boxes'):
        FGDLoss(3)(feats(1).float(), feats(2).float())
