"""SKD: the target, its tokens, and why it needs an anchor."""

import re

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from mmsokd.losses import kd_loss, skd_loss
from mmsokd.losses.boxes import labels_in_cells
from mmsokd.registry import MODELS
from tests.losses.cases import BOXES, SKD, build, skd_layers
from tests.losses.common import arrays, boxed, feats, in_cells, shake
from tests.reference import skd as reference


def skd(**kwargs):
    cfg = dict(type='mmsokd.StudentFriendlyKDLoss', teacher_channels=5, embed_dims=6, num_heads=2)
    return MODELS.build({**cfg, **kwargs})


def logits(seed, shape=(6, 5)):
    return 3 * feats(seed, shape)


def pictures(n, k=5):
    return [DataSample().set_gt_label((2 * i + 1) % k) for i in range(n)]


# ---- the target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('over', ['samples', 'classes'])
def test_without_the_simplifiers_say_and_the_anchor_it_is_kd(over):
    loss = skd(tau=2.0, softening=2.0, anchor=0.0, over=over).double()
    with torch.no_grad():
        for p in loss.simplifier.out.parameters():
            p.zero_()
    s, t = logits(1), logits(2)
    found = loss(s, t, samples=pictures(6))
    torch.testing.assert_close(found.loss, kd_loss(s, t, 2.0))
    torch.testing.assert_close(found.stats['skd.kl_target_student'], kd_loss(s, t, 2.0) / 4)
    assert abs(found.stats['skd.kl_soft_target']) < 1e-12


def test_probabilities_as_they_are_make_a_nearly_uniform_target():
    """What the docstring says of ``residual='probabilities'``."""
    loss = skd(residual='probabilities').double()
    with torch.no_grad():
        for p in loss.simplifier.out.parameters():
            p.zero_()
    _, target = loss.simplify(1e4 * logits(2))
    span = (target.amax(1) - target.amin(1)).exp()
    torch.testing.assert_close(span, torch.full_like(span, 0.25).exp())


@pytest.mark.parametrize('residual', ['logits', 'probabilities'])
@pytest.mark.parametrize('over', ['samples', 'classes'])
@pytest.mark.parametrize('n', [3, 4, 6])
def test_target_against_the_slow_twin(n, over, residual):
    loss = shake(skd(over=over, residual=residual, tau=2.0, softening=3.0))
    t = logits(2, (n, 5))
    soft, target = loss.simplify(t)
    expected = reference.target(t.numpy(), [True] * n, skd_layers(loss), 2, 2.0, 3.0, residual)
    for ours, theirs in zip((soft, target), expected, strict=True):
        torch.testing.assert_close(ours.exp(), torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=0)
    is_softened_alone = over == 'samples' and n < 4 and residual == 'logits'
    assert torch.allclose(soft, target) == is_softened_alone


def test_what_is_told_against_the_slow_twin():
    loss = build('StudentFriendlyKDLoss')
    s, t = logits(1), logits(2)
    found = loss(s, t, samples=pictures(6))
    labels = [(2 * i + 1) % 5 for i in range(6)]
    expected = reference.skd(s.numpy(), t.numpy(), labels, skd_layers(loss), heads=2, **SKD)
    values = [found.loss, *found.stats.values()]
    for value, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(value.item(), theirs, rtol=1e-12, atol=0)


def test_the_anchor_reaches_the_target_alone():
    s, q, y = logits(1).requires_grad_(), logits(2).log_softmax(1).requires_grad_(), torch.arange(6) % 5
    gradients = [torch.autograd.grad(skd_loss(s, q, y, anchor), (s, q)) for anchor in (0.0, 2.0)]
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    expected = torch.zeros(6, 5).double().scatter_(1, y[:, None], -2.0 / 6)
    torch.testing.assert_close(gradients[1][1] - gradients[0][1], expected)


def learn(anchor, rate=1.0, steps=200):
    """What is told after some steps of a student too small for its teacher, first and last.

    The ratio of both learning rates is ``rate``: 1e-3 in the configs, where a collapse needs more time than a test has.
    """
    torch.manual_seed(0)
    pictures, labels = torch.randn(24, 8), torch.arange(24) % 5
    teacher = 6 * torch.eye(5)[labels] + torch.randn(24, 5)
    student = nn.Linear(2, 5)
    loss = skd(anchor=anchor, tau=2.0, softening=2.0, embed_dims=16)
    groups = [dict(params=student.parameters()), dict(params=loss.parameters(), lr=0.02 * rate)]
    optimizer = torch.optim.Adam(groups, lr=0.02)
    samples = [DataSample().set_gt_label(int(y)) for y in labels]
    told = []
    for _ in range(steps):
        found = loss(student(pictures[:, :2]), teacher, samples=samples)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        told.append({name: value.item() for name, value in found.stats.items()})
    return told[0], told[-1]


def test_the_target_stays_apart_from_teacher_and_student_with_the_anchor():
    _, last = learn(anchor=1.0)
    assert last['skd.kl_soft_target'] > 0.01
    assert last['skd.kl_target_student'] > 0.05


def test_at_the_rate_of_the_configs_the_target_leaves_the_teacher_slowly():
    """PESF-KD's 1e-3: after 200 steps it is still next to the softened teacher, and after 1000 apart from both."""
    first, early = learn(anchor=1.0, rate=1e-3)
    assert early['skd.kl_soft_target'] < 2 * first['skd.kl_soft_target']
    assert early['skd.kl_target_student'] > 0.5
    _, late = learn(anchor=1.0, rate=1e-3, steps=1000)
    assert late['skd.kl_soft_target'] > max(0.01, 5 * first['skd.kl_soft_target'])
    assert late['skd.kl_target_student'] > 0.5


def test_the_log_shows_the_collapse_without_the_anchor():
    """The target leaves the teacher and meets the student; with the simplifier's own small rate it does not."""
    first, last = learn(anchor=0.0)
    assert last['skd.kl_target_student'] < 0.05 * first['skd.kl_target_student']
    assert last['skd.kl_soft_target'] > 10 * first['skd.kl_soft_target']
    slow = learn(anchor=0.0, rate=1e-3)[1]
    assert slow['skd.kl_target_student'] > 10 * last['skd.kl_target_student']


@pytest.mark.parametrize('over', ['samples', 'classes'])
def test_the_divergence_reaches_the_whole_simplifier(over):
    loss = skd(over=over, anchor=0.0)
    loss(logits(1).float(), logits(2).float(), samples=pictures(6)).loss.backward()
    silent = {n for n, p in loss.named_parameters() if p.grad.abs().sum() < 1e-9}
    assert not silent


# ---- the tokens -----------------------------------------------------------------------------------------------------


def dense(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=torch.as_tensor(y)[None])) for y in labels]


def test_pixels_without_a_class_are_no_tokens():
    """Neither in the mean, nor for the others to attend to."""
    loss = shake(skd(tau=2.0, softening=3.0, anchor=0.7))
    s, t = logits(1, (2, 5, 3, 4)), logits(2, (2, 5, 3, 4))
    labels = torch.arange(24).view(2, 3, 4) % 5
    labels[:, 1:] = 255
    kept = (labels != 255).flatten().nonzero().flatten().tolist()
    rows = [[reference.rows_of(x.numpy(), 5)[i] for i in kept] for x in (s, t)]
    expected = reference.skd(*rows, labels.flatten()[kept].tolist(), skd_layers(loss), heads=2, **SKD)
    found = loss(s, t, samples=dense(labels))
    for value, theirs in zip([found.loss, *found.stats.values()], expected, strict=True):
        torch.testing.assert_close(value.item(), theirs, rtol=1e-12, atol=0)


def test_a_picture_without_any_class_gives_nothing():
    loss = skd()
    s, t = (logits(i, (2, 5, 3, 4)).float().requires_grad_() for i in (1, 2))
    found = loss(s, t, samples=dense(torch.full((2, 3, 4), 255)))
    found.loss.backward()
    assert found.loss == 0
    assert not s.grad.any()
    assert all(value.isnan() for value in found.stats.values())
    assert all(not p.grad.any() for p in loss.parameters())


def test_as_many_pixels_are_drawn_as_may_be_and_those_with_a_class_first():
    loss = skd(max_tokens=8)
    labels = torch.full((40,), -1)
    labels[::8] = 3
    for _ in range(5):
        chosen = loss._draw(labels)
        assert len(chosen) == len(set(chosen.tolist())) == 8
        assert {0, 8, 16, 24, 32} <= set(chosen.tolist())
    counts = torch.zeros(40)
    for _ in range(2000):
        counts[loss._draw(torch.zeros(40, dtype=torch.long))] += 1
    assert (counts - 400).abs().max() < 100  # 5.6 standard deviations of a fair draw


def test_anchors_in_boxes_are_the_tokens_of_a_detector():
    loss = shake(skd(teacher_channels=15, num_classes=5, tau=2.0, softening=3.0, anchor=0.7, max_tokens=6000))
    s, t = logits(1, (2, 15, 5, 6)), logits(2, (2, 15, 5, 6))
    samples, classes = boxed(BOXES), [[4, 2], []]
    for sample, labels in zip(samples, classes, strict=True):
        sample.gt_instances.labels = torch.tensor(labels, dtype=torch.long)
    cells = [reference.smallest_box(b, y, (5, 6)) for b, y in zip(in_cells(samples), classes, strict=True)]
    labels = [y for picture in cells for row in picture for y in row for _ in range(3)]
    assert {None, 2, 4} == set(labels)
    expected = reference.skd(
        *(reference.rows_of(x.numpy(), 5) for x in (s, t)), labels, skd_layers(loss), heads=2, **SKD
    )
    found = loss(s, t, samples=samples)
    for value, theirs in zip([found.loss, *found.stats.values()], expected, strict=True):
        torch.testing.assert_close(value.item(), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize('seed', range(5))
def test_label_of_a_cell_against_the_slow_twin(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = 40 * torch.rand(2, 4, 2, 2, generator=generator)
    boxes = torch.cat([corners.amin(2), corners.amax(2)], 2).tolist()
    boxes[1] = boxes[1][:2]
    samples = boxed(boxes)
    for sample in samples:
        n = len(sample.gt_instances.bboxes)
        sample.gt_instances.labels = torch.randint(0, 9, (n,), generator=generator)
    found = labels_in_cells(samples, torch.zeros(2, 1, 5, 6, dtype=torch.float64))
    for i, sample in enumerate(samples):
        expected = reference.smallest_box(in_cells(samples)[i], sample.gt_instances.labels.tolist(), (5, 6))
        assert [[None if y < 0 else y for y in row] for row in found[i].tolist()] == expected


def test_a_detector_without_its_number_of_classes_is_refused():
    samples = boxed(BOXES)
    for sample in samples:
        sample.gt_instances.labels = torch.zeros(len(sample.gt_instances.bboxes), dtype=torch.long)
    x = logits(1, (2, 5, 5, 6)).float()
    with pytest.raises(ValueError, match=r'num_classes: expected the detector.* found none beside 5 channels'):
        skd()(x, x, samples=samples)
    assert skd(num_classes=5)(x, x, samples=samples).loss.isfinite()


def test_samples_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"expected 'gt_label' .*found none"):
        skd()(logits(1), logits(2))
    boxes = [DetDataSample(gt_instances=InstanceData(labels=torch.tensor([1]))) for _ in range(2)]
    x = logits(1, (2, 5, 3, 4))
    with pytest.raises(ValueError, match=r'gt_instances\.bboxes'):
        skd(num_classes=5)(x, x, samples=boxes)


WRONG = [
    (dict(tau=0), 'StudentFriendlyKDLoss.tau: expected a number > 0, found 0'),
    (dict(softening='4'), "StudentFriendlyKDLoss.softening: expected a number > 0, found '4'"),
    (dict(anchor=-1), 'StudentFriendlyKDLoss.anchor: expected a number >= 0, found -1'),
    (dict(residual='logit'), "StudentFriendlyKDLoss.residual: expected one of ['logits', 'probabilities'], found "),
    (dict(num_classes=1), 'StudentFriendlyKDLoss.num_classes: expected an integer >= 2, found 1'),
    (dict(num_classes=3), 'StudentFriendlyKDLoss.num_classes: expected a divisor of the 5 channels'),
    (dict(max_tokens=0), 'StudentFriendlyKDLoss.max_tokens: expected an integer >= 1, found 0'),
    (dict(ignore_index='a'), "StudentFriendlyKDLoss.ignore_index: expected an integer, found 'a'"),
    (dict(over='sample'), "LearningSimplifier.over: expected one of ['samples', 'classes'], found 'sample'"),
    (dict(embed_dims=0), 'LearningSimplifier.embed_dims: expected an integer >= 1, found 0'),
    (dict(num_heads=4), 'LearningSimplifier.num_heads: expected a divisor of the 6 embed_dims, found 4'),
]


@pytest.mark.parametrize(('wrong', 'message'), WRONG)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        skd(**wrong)


def test_arrays_of_the_simplifier_are_all_of_it():
    for over in ('samples', 'classes'):
        loss = skd(over=over)
        assert sum(x.size for x in skd_layers(loss).values()) == sum(p.numel() for p in loss.parameters())
        assert len(arrays(*loss.parameters())) == len(skd_layers(loss))
