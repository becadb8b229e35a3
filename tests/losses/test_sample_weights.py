"""DPD's gate and ITAL's weights: which predictions count, and that the weights are constants."""

import pytest
import torch
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch.nn import functional as F

from mmsokd.losses import DPDLoss, ITALLoss, advantage_weight, kd_loss, teaching_score
from tests.losses.common import assert_slopes, feats
from tests.reference import logits as reference


def labelled(labels):
    return [DataSample().set_gt_label(label) for label in labels]


# ---- DPD ------------------------------------------------------------------------------------------------------------


def test_the_gate_opens_where_the_teacher_is_better():
    certain = torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    wrong, right = certain.flip(0), certain
    target = torch.tensor([0, 1])
    # the two cross-entropies differ by just 4
    torch.testing.assert_close(advantage_weight(wrong, right, target, 0.5), torch.full((2,), 2.0).double().exp())
    torch.testing.assert_close(advantage_weight(right, wrong, target, 0.5), torch.full((2,), -2.0).double().exp())
    assert torch.equal(advantage_weight(wrong, wrong, target), torch.ones(2).double())
    assert advantage_weight(wrong, right, target, 5.0).tolist() == pytest.approx([100.0] * 2)
    assert advantage_weight(right, wrong, target, 5.0).tolist() == pytest.approx([0.01] * 2)
    assert advantage_weight(wrong, right, torch.tensor([0, -1]), 0.5)[1] == 1  # without a class


@pytest.mark.parametrize('shape', [(6, 5), (2, 5, 3, 4)])
def test_with_equal_weights_both_are_kd(shape):
    s, t = feats(1, shape), feats(2, shape)
    if len(shape) == 2:
        samples = labelled([0, 1, 2, 3, 4, 2])
    else:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 3, 4), i))) for i in range(2)]
    expected = kd_loss(s, t, 4.0)
    found = DPDLoss(alpha=0.0)(s, t, samples)
    torch.testing.assert_close(found.loss, expected)
    assert found.stats['dpd.effective'] == 1
    feature = feats(3, (shape[0], 7, *shape[2:]))
    found = ITALLoss([7, 5], [7, 5], beta=0.0)([feature, s], [feature, t], samples)
    torch.testing.assert_close(found.loss, expected)
    assert found.stats['ital.effective'].item() == pytest.approx(1)


# ---- ITAL -----------------------------------------------------------------------------------------------------------


def test_the_score_is_by_how_much_a_step_comes_nearer():
    """Of a last layer with a bias that aims at another, whose logits are the teacher's; by autograd, one by one."""
    h, w, aim = feats(1, (6, 3)), feats(2, (5, 4)), feats(3, (5, 4))
    target, lr, beta = torch.tensor([0, 3, 1, 4, 2, 2]), 0.3, 0.7
    ones = torch.cat([h, torch.ones(6, 1, dtype=h.dtype)], 1)
    found = teaching_score(h, ones @ w.T, ones @ aim.T, target, lr, beta)
    for i, score in enumerate(found):
        layer = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(ones[i : i + 1] @ layer.T, target[i : i + 1]), layer)
        nearer = (w - aim).square().sum() - (w - lr * gradient - aim).square().sum()
        torch.testing.assert_close(score, beta * nearer)


def test_what_has_no_class_has_no_weight():
    s, t, h = feats(1, (1, 4, 2, 3)), feats(2, (1, 4, 2, 3)), feats(3, (1, 5, 2, 3))
    labels = torch.tensor([[[0, 255, 3], [255, 1, 2]]])
    loss = ITALLoss([5, 4], [5, 4], lr=0.3)
    found = loss([h, s], [h, t], [SegDataSample(gt_sem_seg=PixelData(data=labels))]).loss
    target = [None if y == 255 else y for y in labels.flatten().tolist()]
    weights = reference.ital_weights(h.numpy(), s.numpy(), t.numpy(), target, 0.3)
    assert [w == 0 for w in weights] == [y is None for y in target]
    assert found.item() == pytest.approx(reference.weighted_kd(s.numpy(), t.numpy(), weights, 4.0), rel=1e-12)
    s.requires_grad_()
    nobody = loss([h, s], [h, t], [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 2, 3), 255)))])
    nobody.loss.backward()
    assert (nobody.loss, nobody.stats['ital.effective'], s.grad.abs().max()) == (0, 0, 0)


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['DPD', 'ITAL'])
def test_weights_are_constants_for_the_gradient(kind):
    """Finite differences of KD with the weights held still are the loss's own slopes, and the feature has none."""
    s, t, h = (x.requires_grad_() for x in (feats(1, (6, 5)), feats(2, (6, 5)), feats(3, (6, 7))))
    target, samples = torch.tensor([0, 1, 2, 3, 4, 2]), labelled([0, 1, 2, 3, 4, 2])
    if kind == 'DPD':
        DPDLoss(alpha=2.0)(s, t, samples).loss.backward()
        weight = advantage_weight(s, t, target, 2.0)
    else:
        ITALLoss([7, 5], [7, 5], lr=0.3)([h, s], [h, t], samples).loss.backward()
        weight = teaching_score(h, s, t, target, 0.3).softmax(0)
    assert h.grad is None
    assert not weight.requires_grad
    assert weight.std() > 0.01 * weight.mean()
    assert_slopes(lambda: kd_loss(s, t, 4.0, weight=weight).item(), dict(student=s, teacher=t).items())
