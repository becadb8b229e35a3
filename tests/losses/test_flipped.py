"""The libraries' loss modules, turned round, against plain Python; and back as they were."""

import copy

import pytest
import torch
from mmdet.models import losses as det
from mmpretrain.models import losses as cls
from mmseg.models import losses as seg
from torch import nn

from mmsokd.losses.flipped import TWINS, flipped, flipped_cross_entropy, left_as_they_are, task_losses
from tests.builders import classifier, gfl, retinanet, segmentor, use_scope
from tests.reference import flipped as reference

close = torch.testing.assert_close


def turned(loss, *args, **kwargs):
    """What a loss module gives within the block."""
    model = nn.ModuleList([loss])
    with flipped(model):
        return loss(*args, **kwargs)


def boxes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, 2, generator=generator).sort(dim=1).values * 20
    return (corners + torch.tensor([[[0.0, 0.0], [2.0, 3.0]]])).flatten(1).double()


def test_softmax_cross_entropy_of_each_library():
    logits, labels = torch.randn(7, 4, dtype=torch.float64) * 3, torch.tensor([0, 3, 1, 2, 2, 0, 3])
    each = [reference.softmax_ce(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    close(
        turned(cls.CrossEntropyLoss(loss_weight=0.5), logits, labels, avg_factor=7).item(),
        0.5 * sum(each) / 7,
        rtol=1e-6,
        atol=0,
    )
    weight = torch.tensor([1.0, 0, 2, 1, 0, 1, 1])
    expected = sum(w * e for w, e in zip(weight.tolist(), each, strict=True)) / 5
    close(turned(det.CrossEntropyLoss(), logits, labels, weight, avg_factor=5).item(), expected, rtol=1e-6, atol=0)
    by_class = cls.CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0, 0.5])
    expected = sum([1.0, 2.0, 3.0, 0.5][k] * e for k, e in zip(labels.tolist(), each, strict=True)) / 7
    close(turned(by_class, logits, labels, avg_factor=7).item(), expected, rtol=1e-6, atol=0)
    close(turned(cls.LabelSmoothLoss(0.1, 4), logits, labels, avg_factor=7).item(), sum(each) / 7, rtol=1e-6, atol=0)
    shares = torch.rand(7, 4, dtype=torch.float64).softmax(1)  # as mixup makes them
    rows = zip(logits.tolist(), shares.tolist(), strict=True)
    expected = sum(s * reference.softmax_ce(row, k) for row, share in rows for k, s in enumerate(share)) / 7
    close(turned(cls.CrossEntropyLoss(use_soft=True), logits, shares, avg_factor=7).item(), expected, rtol=1e-6, atol=0)


def test_segmentation_is_a_mean_over_the_labelled_pixels():
    logits, labels = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randint(0, 5, (2, 3, 4))
    labels[0, :2] = 255
    each = [
        reference.softmax_ce(logits[n, :, y, x].tolist(), int(labels[n, y, x]))
        for n, y, x in (labels != 255).nonzero().tolist()
    ]
    assert len(each) == 16
    found = turned(seg.CrossEntropyLoss(loss_weight=0.4), logits, labels, weight=None, ignore_index=255)
    close(found.item(), 0.4 * sum(each) / 16, rtol=1e-6, atol=0)
    assert turned(seg.CrossEntropyLoss(), logits, torch.full_like(labels, 255), ignore_index=255) == 0


@pytest.mark.parametrize('channels', [1, 3])
def test_binary_segmentation_is_a_mean_over_the_labelled_pixels(channels):
    logits = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, max(2, channels), (2, 3, 4))
    labels[0, :2] = 255
    each = [
        reference.bce(logits[n, k, y, x].item(), float(labels[n, y, x] == (k if channels > 1 else 1)))
        for n, y, x in (labels != 255).nonzero().tolist()
        for k in range(channels)
    ]
    assert len(each) == 16 * channels
    found = turned(seg.CrossEntropyLoss(use_sigmoid=True, loss_weight=0.4), logits, labels, ignore_index=255)
    close(found.item(), 0.4 * sum(each) / len(each), rtol=1e-5, atol=0)


def test_a_sure_student_cannot_rule_the_sum():
    logits = torch.tensor([[60.0, 0.0], [0.0, 0.0], [-60.0, 0.0]], requires_grad=True)
    loss = flipped_cross_entropy(logits, torch.tensor([0, 0, 0]))
    close(loss, torch.tensor([18.42068, 0.693147, 0.0]), rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    half = flipped_cross_entropy(logits.detach().half(), torch.tensor([0, 0, 0]))
    close(half, loss.detach(), rtol=1e-3, atol=1e-6)


def test_binary_cross_entropy_swaps_its_targets():
    logits, labels = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])  # a region proposal's
    weight = torch.tensor([1.0, 1, 0, 1, 1, 0])
    rows = list(zip(logits[:, 0].tolist(), labels.tolist(), weight.tolist(), strict=True))
    expected = sum(w * reference.bce(x, 1.0) for x, k, w in rows if k == 0) / 4  # 1 is background
    found = turned(det.CrossEntropyLoss(use_sigmoid=True), logits, labels, weight.clone(), avg_factor=4)
    close(found.item(), expected, rtol=1e-5, atol=1e-8)
    expected = sum(reference.bce(x, float(k == 0)) for x, k, _ in rows) / 6
    close(turned(det.CrossEntropyLoss(use_sigmoid=True), logits, labels).item(), expected, rtol=1e-5, atol=0)
    targets = torch.rand(6, dtype=torch.float64)  # a centerness
    rows = zip(logits[:, 0].tolist(), targets.tolist(), strict=True)
    found = turned(det.CrossEntropyLoss(use_sigmoid=True), logits[:, 0], targets, avg_factor=6)
    close(found.item(), sum(reference.bce(x, t) for x, t in rows) / 6, rtol=1e-5, atol=0)


def test_label_smoothing_of_single_classes():
    """With a sigmoid the smoothed targets are swapped; the weights of the classes are those of the loss inside."""
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    rows = list(zip(logits.tolist(), labels.tolist(), strict=True))
    each = [reference.bce(x, 0.9 * (k == label) + 0.1 / 3) for row, label in rows for k, x in enumerate(row)]
    loss = cls.LabelSmoothLoss(0.1, 3, use_sigmoid=True, mode='original')
    close(turned(loss, logits, labels).item(), sum(each) / 15, rtol=1e-5, atol=0)
    weighted = cls.LabelSmoothLoss(0.1, 3, class_weight=[1.0, 2.0, 0.5])
    expected = sum([1.0, 2.0, 0.5][label] * reference.softmax_ce(row, label) for row, label in rows) / 5
    close(turned(weighted, logits, labels).item(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('activated', [False, True])
def test_focal_losses_of_logits_and_of_probabilities(activated):
    """TOOD's losses are given p, and not its logit. Where there is no object of a class, nothing is turned round."""
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 3, 2, 1, 3])  # 3 is background
    pred = logits.sigmoid() if activated else logits
    rows = list(zip(logits.tolist(), labels.tolist(), [0.2, 0.0, 0.9, 0.6, 0.0], strict=True))
    each = [reference.focal(row[label], True, 0.25, 2.0) for row, label, _ in rows if label < 3]
    focal = det.FocalLoss(use_sigmoid=True, activated=activated)
    close(turned(focal, pred, labels, avg_factor=2).item(), sum(each) / 2, rtol=1e-5, atol=1e-8)
    pairs = [(row[label], quality) for row, label, quality in rows if label < 3]
    each = [reference.quality_focal(x, target, 2.0) for x, target in pairs]
    quality = det.QualityFocalLoss(use_sigmoid=True, activated=activated)
    scores = torch.tensor([score for _, _, score in rows], dtype=torch.float64)
    close(turned(quality, pred, (labels, scores), avg_factor=2).item(), sum(each) / 2, rtol=1e-5, atol=1e-8)
    targets = torch.tensor([[q * (k == label) for k in range(3)] for _, label, q in rows], dtype=torch.float64)
    close(turned(quality, pred, targets, avg_factor=2).item(), sum(each) / 2, rtol=1e-5, atol=1e-8)


def test_a_mean_of_focal_losses_is_turned_round_as_a_whole():
    logits, targets = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5).lt(0.4).double()
    pairs = list(zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True))
    each = [reference.focal(x, there, 0.5, 2.0) for x, there in pairs]
    found = turned(seg.FocalLoss(loss_weight=1.5), logits, targets)
    close(found.item(), 1.5 * sum(each) / 120, rtol=1e-5, atol=1e-8)
    logits, targets = (x.permute(0, 2, 3, 1).reshape(40, 3) for x in (logits, targets))
    each = [reference.focal(x, there, 0.25, 2.0) for x, there in pairs]
    close(turned(cls.FocalLoss(), logits, targets).item(), sum(each) / 120, rtol=1e-5, atol=1e-8)
    each = [reference.focal(x, True, 0.25, 2.0) for x, there in pairs if there]
    close(turned(cls.FocalLoss(), logits, targets, avg_factor=40).item(), sum(each) / 40, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('size', [5.0, 50.0, 500.0, 5000.0])
@pytest.mark.parametrize('label', [0, 1])
def test_no_element_is_beyond_that_of_softmax(size, label):
    """A student that is as sure as can be, of the object or of the background: 18.4 an element, and no NaN."""
    labels, shares = torch.tensor([label]), torch.tensor([[1.0 - label]])
    losses = [
        (det.CrossEntropyLoss(use_sigmoid=True), (labels,), 1.0),
        (det.CrossEntropyLoss(use_sigmoid=True, reduction='sum'), (shares,), 1.0),
        (det.FocalLoss(use_sigmoid=True), (labels,), 0.75),
        (det.QualityFocalLoss(use_sigmoid=True), ((labels, torch.tensor([0.9])),), 1.0),
        (det.QualityFocalLoss(use_sigmoid=True), (0.9 * shares,), 1.0),
        (det.QualityFocalLoss(use_sigmoid=True, activated=True), (0.9 * shares,), 1.0),
        (cls.CrossEntropyLoss(use_sigmoid=True), (shares,), 1.0),
    ]
    for loss, targets, most in losses:
        for sign in (1, -1):
            logits = torch.tensor([[sign * size]], requires_grad=True)
            pred = logits.sigmoid() if getattr(loss, 'activated', False) else logits
            found = turned(loss, pred, *targets)
            assert 0 <= found <= most * 18.43, type(loss)
            (gradient,) = torch.autograd.grad(found.sum(), logits)
            assert gradient.isfinite().all(), type(loss)
            if label == 0 and sign > 0 and size == 5:
                assert gradient > 0.1, type(loss)  # downhill the student is less sure


def test_background_anchors_do_not_rule_a_detectors_search():
    """A hundred thousand of them, at the prior of 0.01: their share of the turned-round loss is nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100_000, 3, generator=generator) - 4.6
    labels = torch.full((100_000,), 3)
    labels[:20] = 1
    logits.requires_grad_()
    for loss, target in [
        (det.FocalLoss(use_sigmoid=True), labels),
        (det.CrossEntropyLoss(use_sigmoid=True), labels),
        (det.QualityFocalLoss(use_sigmoid=True), (labels, (labels < 3) * 0.8)),
    ]:
        found = turned(loss, logits, target, avg_factor=20)
        assert found < 18.43
        (gradient,) = torch.autograd.grad(found, logits)
        assert gradient[:20, 1].all()
        assert gradient[20:].abs().sum() + gradient[:20, [0, 2]].abs().sum() == 0
    objectness = det.CrossEntropyLoss(use_sigmoid=True, reduction='sum')  # YOLOX's, which its head divides
    found = turned(objectness, logits[:, :1], (labels < 3).float()[:, None]) / 20
    close(found, -torch.log(1 - logits[:20, 0].sigmoid()).mean(), rtol=1e-4, atol=1e-5)


def test_the_plain_losses_are_what_they_were():
    logits, labels = torch.randn(5, 3) * 60, torch.tensor([0, 3, 2, 1, 3])
    for loss in (det.FocalLoss(use_sigmoid=True), det.CrossEntropyLoss(use_sigmoid=True)):
        before = loss(logits, labels, avg_factor=2)
        turned(loss, logits, labels, avg_factor=2)
        assert torch.equal(loss(logits, labels, avg_factor=2), before)


def test_l1_and_giou_are_bounded():
    a, b = boxes(6, 0), boxes(6, 1)
    b[0], b[1] = a[0], a[1] + 0.3
    weight = torch.tensor([[1.0], [1], [0], [1], [2], [1]]).expand(6, 4)
    pairs = zip(a.tolist(), b.tolist(), weight[:, 0].tolist(), strict=True)
    flat = [w * reference.l1(x, y, 1.0) for p, q, w in pairs for x, y in zip(p, q, strict=True)]
    close(turned(det.L1Loss(loss_weight=2.0), a, b, weight, avg_factor=3).item(), 2 * sum(flat) / 3, rtol=1e-5, atol=0)
    assert sum(flat) > 6  # the equal box counts in full, the near one by 0.7 a side
    pairs = zip(a.tolist(), b.tolist(), weight[:, 0].tolist(), strict=True)
    expected = sum(w * reference.giou(p, q) for p, q, w in pairs) / 3
    close(turned(det.GIoULoss(loss_weight=2.0), a, b, weight, avg_factor=3).item(), 2 * expected, rtol=1e-5, atol=1e-6)
    assert turned(det.GIoULoss(), a[:0], b[:0], weight[:0], avg_factor=1) == 0
    far = turned(det.SmoothL1Loss(), torch.full((3, 4), 50.0), torch.zeros(3, 4))
    assert far == 0  # bad enough: no reason to make it worse


@pytest.mark.parametrize('make', [classifier, segmentor, retinanet, gfl], ids=lambda f: f.__name__)
def test_every_loss_of_a_model_is_found_and_left_as_it_was(make):
    from mmengine.registry import MODELS as ROOT_MODELS

    model = ROOT_MODELS.build(make())
    found = task_losses(model)
    heads = dict(classifier=['head.loss_module'], segmentor=['decode_head.loss_decode'])
    heads |= dict(retinanet=['bbox_head.loss_cls', 'bbox_head.loss_bbox'])
    heads |= dict(gfl=['bbox_head.loss_cls', 'bbox_head.loss_bbox', 'bbox_head.loss_dfl'])
    assert sorted(found) == sorted(heads[make.__name__])
    (module, *_) = found.values()
    with flipped(model):
        assert 'forward' in vars(module)
    assert 'forward' not in vars(module)
    with pytest.raises(TypeError), flipped(model):
        module()
    assert 'forward' not in vars(module)
    copy.deepcopy(model)


def test_what_cannot_be_turned_round_is_named():
    use_scope('mmdet')
    model = nn.ModuleDict(dict(head=nn.ModuleDict(dict(loss_cls=det.GHMC(), loss_bbox=det.L1Loss()))))
    with pytest.raises(ValueError, match=r'student\.head\.loss_cls: expected one of .* found GHMC; nearest: '):
        task_losses(model)
    with pytest.raises(ValueError, match='expected a student with loss modules'):
        task_losses(nn.Conv2d(1, 1, 1))
    assert set(TWINS) <= {name for room in (det, seg, cls) for name in vars(room)}


def test_a_loss_that_a_head_computes_by_itself_is_found():
    loss, x = det.L1Loss(), torch.tensor([[0.25, 0.5]])
    model = nn.ModuleList([loss])

    part = lambda: loss(x, torch.zeros_like(x))  # noqa: E731
    for own, wrong in [
        (lambda: part() * 3 + 0, False),
        (lambda: x.sum() * 0, False),
        (lambda: x.sum(), True),
        (lambda: part() + 0.2, True),
        (lambda: torch.exp(-part()), True),
    ]:

        def losses(own=own):
            return dict(loss=part() + own(), acc=x.mean(), loss_bbox=part(), loss_own=own())

        assert left_as_they_are(model, losses) == (['loss_own'] if wrong else [])
    assert left_as_they_are(model, lambda: dict(loss=x.sum())) == ['loss']
    assert left_as_they_are(model, lambda: dict(loss=torch.rand(()) * part())) == []  # the same draw both times
