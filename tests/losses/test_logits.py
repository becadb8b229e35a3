"""KD, DKD and DIST: class logits (N, K) and dense logits (N, K, H, W)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmsokd.losses import dist_loss, dkd_loss, kd_loss, rectified
from mmsokd.losses.dist import pearson
from mmsokd.registry import MODELS
from tests.losses.cases import build, more
from tests.losses.common import feats
from tests.reference import logits as reference
from tests.reference.plain import nearest

LOGITS = ('KDLoss', 'KDLoss sigmoid', 'DKDLoss', 'DRKDLoss', 'DISTLoss', 'RCKALoss')


def logits(seed, shape=(6, 5)):
    return 3 * feats(seed, shape)


def loss_of(name):
    """The loss as a function of student and teacher."""
    loss = build(name)
    return lambda s, t: loss(s, t, **more(name, s))


@pytest.mark.parametrize('shape', [(1, 5), (3, 2), (1, 5, 1, 1), (2, 3, 2, 1)])
@pytest.mark.parametrize('name', LOGITS)
def test_extreme_logits_keep_value_and_gradient_finite(name, shape):
    loss = loss_of(name)
    plain, equal = logits(1, shape).float(), torch.zeros(shape)
    sure, hot = torch.full(shape, -1e4), torch.full(shape, -1e4)
    hot[:, 0] = 1e4
    for s in (plain, equal, sure, hot, 1e-20 * plain, plain + 1000.3):
        for t in (plain, equal, sure, hot):
            pair = s.clone().requires_grad_(), t.clone().requires_grad_()
            value = loss(*pair)
            value.backward()
            assert value.isfinite()
            assert all(x.grad.isfinite().all() for x in pair)
            assert max(x.grad.abs().max() for x in pair) < 1e5


def test_detr_queries_are_refused():
    with pytest.raises(ValueError, match=r'\(N, K\) or \(N, K, H, W\).*found student \(2, 7, 5\)'):
        kd_loss(torch.zeros(2, 7, 5), torch.zeros(2, 7, 5))


def test_the_function_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match=r"activation: .*found 'sofmax'; did you mean 'softmax'"):
        kd_loss(logits(1), logits(2), activation='sofmax')


# ---- what the papers claim ------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.floats(-50, 50))
def test_softmax_losses_ignore_a_shift_of_the_logits(seed, shift):
    s, t = logits(seed), logits(seed + 1)
    for name in ('KDLoss', 'DKDLoss', 'DISTLoss'):
        torch.testing.assert_close(loss_of(name)(s + shift, t), loss_of(name)(s, t))


def test_sigmoid_sees_a_shift_of_the_logits():
    s, t = logits(1), logits(2)
    assert abs(kd_loss(s + 1, t, activation='sigmoid') - kd_loss(s, t, activation='sigmoid')) > 0.1


def test_kd_of_high_temperature_matches_centred_logits():
    """Hinton et al., sec. 2.1: the gradient tends to (s - t) / K for logits of mean zero."""
    s, t = logits(1), logits(2)
    s, t = (s - s.mean(1, keepdim=True)).requires_grad_(), t - t.mean(1, keepdim=True)
    kd_loss(s, t, tau=1e5).backward()
    torch.testing.assert_close(s.grad * len(s), (s.detach() - t) / s.shape[1], rtol=1e-3, atol=1e-4)


def test_sigmoid_of_one_channel_is_the_softmax_of_two():
    s, t = logits(1, (6, 1)), logits(2, (6, 1))
    two = [torch.cat([x, torch.zeros_like(x)], 1) for x in (s, t)]
    torch.testing.assert_close(kd_loss(s, t, activation='sigmoid'), kd_loss(*two))


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_dkd_contains_kd(tau):
    """The identity that the paper starts from."""
    s, t = logits(1)[:1], logits(2)[:1]
    beta = 1 - (t / tau).softmax(1)[0, 3].item()
    torch.testing.assert_close(dkd_loss(s, t, torch.tensor([3]), 1.0, beta, tau), kd_loss(s, t, tau))


@given(st.integers(0, 999), st.floats(0.1, 10), st.floats(-5, 5))
def test_dist_ignores_scale_and_shift_of_the_probabilities(seed, scale, shift):
    p, q = logits(seed).softmax(1), logits(seed + 1).softmax(1)
    for dim in (0, 1):
        torch.testing.assert_close(pearson(scale * p + shift, q, dim), pearson(p, q, dim), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(pearson(p, scale * p + shift, dim), torch.ones(p.shape[1 - dim]).double())


def test_dist_of_one_picture_compares_its_classes_alone():
    s, t = logits(1), logits(2)
    torch.testing.assert_close(dist_loss(s, t, 1.0, 0.0) + dist_loss(s, t, 0.0, 1.0), dist_loss(s, t))
    one = s[:1].requires_grad_()
    value = dist_loss(one, t[:1], beta=0.0)
    value.backward()
    assert value == 1
    assert not one.grad.any()
    (inter,) = torch.autograd.grad(dist_loss(one, t[:1], gamma=0.0), one)
    assert inter.abs().max() > 1e-3


@pytest.mark.parametrize('classes', [3, 7, 11, 100])
def test_dist_takes_no_direction_from_rounding(classes):
    """Equal logits, whose softmax differs from its mean in the last bit."""
    s = torch.full((9, classes), 0.3).requires_grad_()
    value = dist_loss(s, logits(1, (9, classes)).float())
    value.backward()
    assert value == 2
    assert not s.grad.any()


def test_a_rectified_teacher_is_right_and_has_the_same_values():
    t = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    right = torch.tensor([[3.0, 1.0, 2.0], [2.0, 1.0, 3.0], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    assert torch.equal(rectified(t, torch.tensor([0, 2, -1, 1])), right)


def test_dr_kd_of_ignored_pixels_is_kd():
    s, t = logits(1, (2, 5, 3, 4)), logits(2, (2, 5, 3, 4))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 7, 10), 255))) for _ in s]
    loss = MODELS.build(dict(type='mmsokd.DRKDLoss', tau=2.0))
    torch.testing.assert_close(loss(s, t, samples=samples), kd_loss(s, t, 2.0))


# ---- where DKD's classes come from ----------------------------------------------------------------------------------


def test_dkd_takes_the_class_of_the_largest_score_under_mixup():
    s, t = logits(1), logits(2)
    samples = [
        DataSample().set_gt_label(0).set_gt_score(torch.eye(5)[i % 5] * 0.7 + torch.eye(5)[0] * 0.3) for i in range(6)
    ]
    loss = build('DKDLoss')
    expected = reference.dkd(s.numpy(), t.numpy(), [i % 5 for i in range(6)], 0.7, 3.0, 2.0)
    torch.testing.assert_close(loss(s, t, samples=samples).item(), expected)


def test_dkd_on_labels_of_another_size_with_ignored_pixels():
    s, t = logits(1, (2, 5, 3, 4)), logits(2, (2, 5, 3, 4))
    maps = torch.randint(0, 5, (2, 7, 10), generator=torch.Generator().manual_seed(1))
    maps[:, :4, :6] = 255
    small = [y for m in maps.numpy() for y in nearest(m, (3, 4), 0.5).ravel().tolist()]
    assert 255 in small
    expected = reference.dkd(s.numpy(), t.numpy(), [None if y == 255 else y for y in small], 0.7, 3.0, 2.0)
    loss = build('DKDLoss')
    samples = [SegDataSample(gt_sem_seg=PixelData(data=m[None])) for m in maps]
    torch.testing.assert_close(loss(s, t, samples=samples).item(), expected)
    nothing = [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 7, 10), 255))) for _ in maps]
    s.requires_grad_()
    value = loss(s, t, samples=nothing)
    value.backward()
    assert value == 0
    assert not s.grad.any()


def test_class_255_counts_in_classification():
    s, t = logits(1, (2, 300)), logits(2, (2, 300))
    loss = MODELS.build(dict(type='mmsokd.DKDLoss'))
    samples = [DataSample().set_gt_label(255) for _ in range(2)]
    torch.testing.assert_close(loss(s, t, samples=samples).item(), reference.dkd(s.numpy(), t.numpy(), [255, 255]))


def test_dkd_without_classes_is_refused():
    loss = MODELS.build(dict(type='mmsokd.DKDLoss'))
    boxes = [DetDataSample(gt_instances=InstanceData(labels=torch.tensor([1]))) for _ in range(2)]
    dense, plain = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)
    maps = [PixelData(sem_seg=torch.zeros(1, side, 8, dtype=torch.long)) for side in (8, 6)]
    with pytest.raises(ValueError, match=r'one size in a batch, found \(6, 8\) and \(8, 8\); .*pad_seg=True'):
        loss(dense, dense, samples=[SegDataSample(gt_sem_seg=gt) for gt in maps])
    with pytest.raises(ValueError, match=r"expected 'gt_sem_seg' .*found \[.*\]; .*detection, take KDLoss"):
        loss(dense, dense, samples=boxes)
    with pytest.raises(ValueError, match=r"expected 'gt_label' .*found none"):
        loss(plain, plain)
    with pytest.raises(ValueError, match=r"one class a picture, found \[2, 2\].*activation='sigmoid'"):
        loss(plain, plain, samples=[DataSample().set_gt_label([0, 1])] * 2)
    with pytest.raises(ValueError, match='at least 2 classes'):
        dkd_loss(plain[:, :1], plain[:, :1], torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r'targets \(3,\)'):
        dkd_loss(plain, plain, torch.zeros(3, dtype=torch.long))
