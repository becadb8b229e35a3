"""TST's operators against PIL, torchvision and finite differences; boxes and label maps against NumPy."""

import math

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image, ImageEnhance, ImageOps
from torch.autograd import gradcheck
from torchvision.transforms import functional as TF

from mmsokd.augment.image_ops import CUTOUT_SIDE, IMAGE_OPS, posterize, solarize
from mmsokd.augment.warping import Canvas, has_places, identity, warp, warp_boxes, warp_labels, warp_masks, warp_samples
from tests.reference import image as reference

LEVELS = [-0.9, -0.37, 0.0, 0.5, 0.9]
BLENDS = dict(
    Brightness=(ImageEnhance.Brightness, TF.adjust_brightness),
    Color=(ImageEnhance.Color, TF.adjust_saturation),
    Contrast=(ImageEnhance.Contrast, TF.adjust_contrast),
    Sharpness=(ImageEnhance.Sharpness, TF.adjust_sharpness),
)


def picture(height=24, width=31, seed=0):
    """Noise on a slope, uint8 (H, W, 3): all levels, and neighbours that are alike."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.4, 1, height)[:, None, None]
    return (slope * rng.uniform(0.5, 1, 3) + rng.uniform(-40, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)


def tensor(array, dtype=torch.float32):
    return torch.from_numpy(array).permute(2, 0, 1)[None].to(dtype) / 255


def levels(x):
    """Back to grey levels, not rounded."""
    return x[0].permute(1, 2, 0).numpy() * 255


def canvas_of(x, shapes=None):
    shapes = shapes or [tuple(x.shape[2:])] * len(x)
    return Canvas.of(x, shapes, torch.full((len(x), 2), 0.4))


def apply(name, x, v=None):
    v = None if v is None else torch.full((len(x),), v, dtype=x.dtype)
    return IMAGE_OPS[name].apply(x, v, canvas_of(x))


# ---- equal to PIL and torchvision ------------------------------------------------------------------------------------


@pytest.mark.parametrize('v', LEVELS)
@pytest.mark.parametrize('name', BLENDS)
def test_blends_are_pils_and_torchvisions(name, v):
    enhance, adjust = BLENDS[name]
    array = picture()
    ours = apply(name, tensor(array), v)
    # torchvision's red is 0.2989 where PIL's is 0.299
    torch.testing.assert_close(ours, adjust(tensor(array), 1 + v), atol=2e-4, rtol=0)
    # PIL cuts the result to a whole level, and rounds the other picture (grey, mean, smooth) to one before
    theirs = np.asarray(enhance(Image.fromarray(array)).enhance(1 + v), dtype=float)
    assert np.abs(levels(ours) - theirs).max() < 1 + abs(v)
    assert v == 0 or np.abs(levels(ours) - array).max() > 10


@pytest.mark.parametrize('bits', [8, 7, 6, 5, 4])
def test_posterize_is_pils(bits):
    array = picture()
    theirs = np.asarray(ImageOps.posterize(Image.fromarray(array), bits))
    np.testing.assert_allclose(levels(apply('Posterize', tensor(array), float(8 - bits))), theirs, atol=0.02)


@pytest.mark.parametrize('threshold', [255, 200, 128, 17, 0])
def test_solarize_is_pils(threshold):
    array = picture()
    theirs = np.asarray(ImageOps.solarize(Image.fromarray(array), threshold))
    np.testing.assert_allclose(levels(apply('Solarize', tensor(array), threshold / 255)), theirs, atol=1e-3)


@pytest.mark.parametrize('name', ['Posterize', 'Solarize', 'Equalize'])
def test_whole_levels_survive_the_normalization(name):
    """A picture that was normalised and brought back is a little off its whole levels; no level may fall for that."""
    array = picture(seed=1)
    mean, std = (
        torch.tensor([123.675, 116.28, 103.53])[:, None, None],
        torch.tensor([58.395, 57.12, 57.375])[:, None, None],
    )
    back = ((tensor(array) * 255 - mean) / std * std + mean) / 255
    assert (back != tensor(array)).any()
    v = dict(Posterize=3.0, Solarize=float(array[3, 3, 0]) / 255).get(name)
    torch.testing.assert_close(apply(name, back, v), apply(name, tensor(array), v), atol=1e-3, rtol=0)


@pytest.mark.parametrize('kind', ['slope', 'flat', 'dark'])
def test_equalize_and_invert_are_pils(kind):
    array = dict(slope=picture(), flat=np.full((5, 7, 3), 90, np.uint8), dark=picture() // 9)[kind]
    theirs = np.asarray(ImageOps.equalize(Image.fromarray(array)))
    np.testing.assert_allclose(levels(apply('Equalize', tensor(array))), theirs, atol=1e-3)
    theirs = np.asarray(ImageOps.invert(Image.fromarray(array)))
    np.testing.assert_allclose(levels(apply('Invert', tensor(array))), theirs, atol=1e-3)


def torchvision_warp(name, x, v):
    height, width = x.shape[2:]
    still = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], interpolation=TF.InterpolationMode.BILINEAR)
    degrees = math.degrees(math.atan(v))
    if name == 'Rotate':
        return TF.rotate(x, v, TF.InterpolationMode.BILINEAR)
    changed = dict(
        ShearX=dict(shear=[degrees, 0.0]),
        ShearY=dict(shear=[0.0, degrees]),
        TranslateX=dict(translate=[v * width, 0]),
        TranslateY=dict(translate=[0, v * height]),
    )
    return TF.affine(x, **{**still, **changed[name]})


def pil_warp(name, image, v):
    width, height = image.size
    if name == 'Rotate':
        return image.rotate(v, Image.BILINEAR)
    x, y = width / 2, height / 2
    coefficients = dict(
        ShearX=(1, v, -v * y, 0, 1, 0),
        ShearY=(1, 0, 0, v, 1, -v * x),
        TranslateX=(1, 0, -v * width, 0, 1, 0),
        TranslateY=(1, 0, 0, 0, 1, -v * height),
    )
    return image.transform(image.size, Image.AFFINE, coefficients[name], Image.BILINEAR)


WARPS = [name for name, op in IMAGE_OPS.items() if op.warps]


@pytest.mark.parametrize('sign', [-1, 1])
@pytest.mark.parametrize('name', WARPS)
def test_warps_are_pils_and_torchvisions(name, sign):
    array = picture()
    for share in (0.3, 1.0):
        v = sign * share * IMAGE_OPS[name].hi
        ours = apply(name, tensor(array), v)
        torch.testing.assert_close(ours, torchvision_warp(name, tensor(array), v), atol=1e-5, rtol=0)
        # PIL rounds to whole levels, and at the picture's edge takes its last pixel where we mix in black
        inner = torchvision_warp(name, torch.ones_like(tensor(array)), v)[0, 0].numpy() > 1 - 1e-4
        theirs = np.asarray(pil_warp(name, Image.fromarray(array), v), dtype=float)
        assert np.abs(levels(ours) - theirs)[inner].max() <= 1.01
        assert inner.mean() > 0.3
        assert np.abs(levels(ours) - array)[inner].max() > 20


def test_ranges_are_the_papers():
    assert len(IMAGE_OPS) == 14
    graded = {name: (op.lo, op.hi) for name, op in IMAGE_OPS.items() if op.lo is not None}
    assert list(graded) == list(IMAGE_OPS)[:11]
    assert {name: ends[1] for name, ends in graded.items()} == dict(
        Brightness=0.9, Color=0.9, Contrast=0.9, Sharpness=0.9, Posterize=4, Solarize=0, ShearX=0.3, ShearY=0.3,
        TranslateX=150 / 331, TranslateY=150 / 331, Rotate=30,
    )  # fmt: skip
    assert [ends[0] for ends in graded.values()] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert [name for name, op in IMAGE_OPS.items() if op.signed] == [
        n for n in graded if n not in ('Posterize', 'Solarize')
    ]
    sign = torch.tensor([1.0, -1.0])
    assert IMAGE_OPS['Rotate'].strength(torch.tensor(0.5), sign).tolist() == [15, -15]
    assert IMAGE_OPS['Solarize'].strength(torch.tensor(0.25), sign).tolist() == [0.75, 0.75]


def test_cutout_covers_its_share():
    x = torch.rand(2, 3, 32, 48) * 0.4
    out = IMAGE_OPS['Cutout'].apply(x, None, Canvas.of(x, [(32, 48)] * 2, torch.tensor([[0.5, 0.5], [0.0, 1.0]])))
    gone = (out == 0.5).all(1)
    assert gone.sum((1, 2)).tolist() == [
        (32 * CUTOUT_SIDE) * (48 * CUTOUT_SIDE),
        (16 * CUTOUT_SIDE) * (24 * CUTOUT_SIDE),
    ]
    assert gone[0, 12:20, 18:30].all()
    assert gone[1, :4, -6:].all()
    torch.testing.assert_close(out.movedim(1, -1)[~gone], x.movedim(1, -1)[~gone])


# ---- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', IMAGE_OPS)
def test_a_padded_picture_is_changed_as_it_would_be_alone(name):
    array = picture(20, 26)
    alone, op = tensor(array), IMAGE_OPS[name]
    padded = torch.full((1, 3, 24, 32), 0.45)
    padded[:, :, :20, :26] = alone
    v = None if op.lo is None else torch.tensor([0.6 * op.hi if op.hi else 0.5])
    centre = torch.tensor([[0.3, 0.6]])
    out = op.apply(padded, v, Canvas.of(padded, [(20, 26)], centre))
    expected = op.apply(alone, v, Canvas.of(alone, [(20, 26)], centre))
    torch.testing.assert_close(out[:, :, :20, :26], expected, atol=1e-5, rtol=0)


# ---- differentiable --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [*BLENDS, *WARPS])
def test_gradient_is_that_of_finite_differences(name):
    x = torch.rand(2, 3, 6, 7, dtype=torch.float64) * 0.2 + 0.4  # far from black and white, where all is clipped
    v = (torch.tensor([0.31, -0.17], dtype=torch.float64) * IMAGE_OPS[name].hi).requires_grad_()
    canvas = canvas_of(x)
    assert gradcheck(lambda v: IMAGE_OPS[name].apply(x, v, canvas), (v,), eps=1e-7, atol=1e-6)
    (gradient,) = torch.autograd.grad(IMAGE_OPS[name].apply(x, v, canvas).square().sum(), v)
    assert (gradient.abs() > 1e-4).all()


def test_gradient_of_the_combined_warp():
    x = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    matrix = (identity(2, x) + 0.1 * torch.randn(2, 2, 3, dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda m: warp(x, m, canvas_of(x)), (matrix,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(('op', 'at', 'h'), [(solarize, 0.35, 0.05), (solarize, 0.7, 0.05), (posterize, 2.6, 0.3)])
def test_steps_have_the_gradient_of_their_mean(op, at, h):
    """A pixel jumps; the mean over pixels of all levels does not, and what it does the gradient must say."""
    x = torch.linspace(0, 1, 3 * 400 * 500, dtype=torch.float64).view(1, 3, 400, 500)
    v = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(op(x, v, None).mean(), v)
    with torch.no_grad():
        slope = (op(x, v + h, None).mean() - op(x, v - h, None).mean()) / (2 * h)
    assert abs(slope) > 1e-3
    torch.testing.assert_close(gradient, slope[None], rtol=0.03, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize('name', IMAGE_OPS)
def test_on_a_gpu_as_on_the_cpu(name):
    """In float32: pictures to 1e-5, gradients to 1e-4; the second picture has padding."""
    op, x = IMAGE_OPS[name], (torch.rand(2, 3, 12, 14) * 255).round() / 255
    v = None if op.lo is None else op.strength(torch.tensor(0.6), torch.tensor([1.0, -1.0]))
    found = []
    for device in ('cpu', 'cuda'):
        inputs = [value.detach().to(device).requires_grad_() for value in (x, v) if value is not None]
        out = op.apply(*inputs, *[None] * (v is None), canvas_of(inputs[0], [(12, 14), (9, 11)]))
        grads = torch.autograd.grad(out.square().sum(), inputs) if out.requires_grad else []
        found.append([value.cpu() for value in (out.detach(), *grads)])
    assert len(found[0]) == (1 if name == 'Equalize' else 2 if v is None else 3)
    for one, other, tolerance in zip(*found, [1e-5, 1e-4, 1e-4], strict=False):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# ---- boxes and label maps --------------------------------------------------------------------------------------------

MATRICES = torch.tensor(
    [
        [[0.907, -0.411, 3.2], [0.503, 0.851, -2.1]],
        [[1.01, 0.313, -5.7], [0.017, 1.0, 4.3]],
        [[0.871, 0.503, 0.013], [-0.497, 0.869, 0.0]],
    ]
)
SIZE = torch.tensor([[20.0, 31.0], [24.0, 32.0], [17.0, 16.0]])


def test_label_maps_are_warped_point_by_point():
    labels = torch.randint(0, 9, (3, 1, 24, 32))
    out = warp_labels(labels, MATRICES, SIZE, 255)
    for i, (height, width) in enumerate(SIZE.int().tolist()):
        expected = reference.warp_labels(labels[i, 0].numpy(), MATRICES[i].double().numpy(), height, width)
        assert (out[i, 0].numpy() == expected).all()
    assert (out == 255).any()
    assert out.dtype == labels.dtype
    assert torch.equal(warp_labels(labels, identity(3, MATRICES), torch.tensor([[24, 32]] * 3), 255), labels)


def test_boxes_go_through_the_inverse_map():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, 2, generator=generator).sort(dim=1).values * 30 - 3
    boxes, owner = corners.flatten(1), torch.arange(60) % 3
    out = warp_boxes(boxes, MATRICES[owner], SIZE[owner])
    dropped = 0
    for i, box in enumerate(boxes):
        height, width = SIZE[owner[i]].int().tolist()
        expected = reference.warp_box(box.tolist(), MATRICES[owner[i]].double().numpy(), height, width)
        if expected is None:
            dropped += 1
            assert ((out[i, 2:] - out[i, :2]) < 1 + 1e-5).any()
        else:
            torch.testing.assert_close(out[i].tolist(), expected, atol=1e-4, rtol=0)
    assert 0 < dropped < 30


def test_a_box_follows_its_picture():
    """Of a bright rectangle the pixels that are bright after the warp lie in the warped box and touch its sides."""
    x, box = torch.zeros(3, 3, 24, 32), torch.tensor([8.0, 6.0, 14.0, 11.0])
    x[:, :, 6:11, 8:14] = 1
    size = torch.tensor([[24.0, 32.0]] * 3)
    out = warp(x, MATRICES, Canvas.of(x, [(24, 32)] * 3, torch.zeros(3, 2)))
    for hull, bright in zip(warp_boxes(box.expand(3, 4), MATRICES, size), out[:, 0] > 0.02, strict=True):
        rows, columns = bright.nonzero().unbind(1)
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (found - hull).abs().max() < 1.6


@pytest.mark.cuda
def test_boxes_and_label_maps_on_a_gpu_as_on_the_cpu():
    corners = torch.rand(60, 2, 2).sort(dim=1).values * 30 - 3
    labels, owner, found = torch.randint(0, 9, (3, 1, 24, 32)), torch.arange(60) % 3, []
    for device in ('cpu', 'cuda'):
        boxes, maps, matrices, size = (x.to(device) for x in (corners.flatten(1), labels, MATRICES, SIZE))
        warped = warp_boxes(boxes, matrices[owner], size[owner]), warp_labels(maps, matrices, size, 255)
        found.append([x.cpu() for x in warped])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)  # of pixels; labels are equal or 1 apart


def test_samples_are_warped_as_their_parts():
    boxes = torch.tensor([[4.0, 4.0, 12.0, 12.0], [29.0, 0.0, 31.0, 2.0], [1.0, 2.0, 30.0, 19.0]])
    samples = []
    for i in range(3):
        sample = DetDataSample(metainfo=dict(img_shape=(20, 31)))
        sample.gt_instances = InstanceData(bboxes=boxes[: 3 - i].clone(), labels=torch.arange(3 - i))
        sample.ignored_instances = InstanceData(bboxes=boxes[:0].clone())
        samples.append(sample)
    samples[2].gt_instances = InstanceData(bboxes=boxes[:0], labels=torch.arange(0))
    size = SIZE[:1].expand(3, 2)
    out = warp_samples(samples, MATRICES, size)
    for i in range(3):
        expected = [
            (label, reference.warp_box(box.tolist(), MATRICES[i].double().numpy(), 20, 31))
            for label, box in enumerate(samples[i].gt_instances.bboxes)
        ]
        expected = [(label, box) for label, box in expected if box is not None]
        assert out[i].gt_instances.labels.tolist() == [label for label, _ in expected]
        for box, (_, hull) in zip(out[i].gt_instances.bboxes.tolist(), expected, strict=True):
            torch.testing.assert_close(box, hull, atol=1e-4, rtol=0)
        assert len(out[i].ignored_instances) == 0
    assert len(out[0].gt_instances) == 2
    torch.testing.assert_close(samples[0].gt_instances.bboxes, boxes)  # the originals stay


def test_label_maps_of_samples():
    maps = torch.randint(0, 5, (2, 1, 20, 31))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=labels.clone())) for labels in maps]
    out = warp_samples(samples, MATRICES[:2], SIZE[:1].expand(2, 2), fill=77)
    for i in range(2):
        expected = reference.warp_labels(maps[i, 0].numpy(), MATRICES[i].double().numpy(), 20, 31, fill=77)
        assert (out[i].gt_sem_seg.data[0].numpy() == expected).all()
        assert torch.equal(samples[i].gt_sem_seg.data, maps[i])


TRIANGLES = [np.array([8.0, 4, 24, 6, 15, 18]), np.array([2.0, 2, 12, 3, 7.5, 11]), np.array([20.0, 9, 29, 9, 25, 16])]


def test_instance_masks_are_warped_point_by_point():
    """Bitmaps of the batch's size, which is not the picture's, and polygons of two parts."""
    generator = np.random.default_rng(0)
    bitmaps = BitmapMasks(generator.integers(0, 2, (2, 24, 32), dtype=np.uint8), 24, 32)
    polygons = PolygonMasks([TRIANGLES[:2], [TRIANGLES[2].astype(np.float32)]], 20, 31)
    for matrix, size in zip(MATRICES, SIZE, strict=True):
        height, width = size.int().tolist()
        warped = warp_masks(bitmaps, matrix, size)
        for old, new in zip(bitmaps.masks, warped.masks, strict=True):
            expected = reference.warp_labels(old.astype(int), matrix.double().numpy(), height, width, fill=0)
            assert (new == expected).all()
        assert warped.masks.dtype == np.uint8
        warped = warp_masks(polygons, matrix, size)
        linear, centre = matrix[:, :2].double().numpy(), np.array([width, height]) / 2
        for old, new in zip(polygons.masks, warped.masks, strict=True):
            for points, found in zip(old, new, strict=True):
                back = (found.reshape(-1, 2) - centre) @ linear.T + matrix[:, 2].double().numpy() + centre
                np.testing.assert_allclose(back, points.reshape(-1, 2), atol=1e-4)
                assert found.dtype == points.dtype
    assert len(warp_masks(BitmapMasks([], 24, 32), MATRICES[0], SIZE[0])) == 0
    assert len(warp_masks(PolygonMasks([], 24, 32), MATRICES[0], SIZE[0])) == 0


def test_masks_of_samples_follow_their_boxes():
    """As a polygon and as its bitmap, to a pixel at the edges; whose box is dropped goes too."""
    polygons = PolygonMasks([[points] for points in TRIANGLES], 20, 31)
    corners = np.stack(TRIANGLES).reshape(3, 3, 2)
    boxes = torch.from_numpy(np.concatenate([corners.min(1), corners.max(1)], axis=1)).float()
    boxes[1] = torch.tensor([-9.0, -9.0, -8.0, -8.0])  # which no map brings in
    out = {}
    for masks in (polygons, polygons.to_bitmap()):
        instances = InstanceData(bboxes=boxes, labels=torch.arange(3), masks=masks)
        sample = DetDataSample(gt_instances=instances)
        (moved,) = warp_samples([sample], MATRICES[2:], SIZE[:1])
        assert moved.gt_instances.labels.tolist() == [0, 2]
        out[type(masks)] = moved.gt_instances.masks.to_ndarray()
        assert sample.gt_instances.masks is masks
        for box, mask in zip(moved.gt_instances.bboxes, out[type(masks)], strict=True):
            rows, columns = mask.nonzero()
            left, top, right, bottom = box.tolist()
            assert left - 1 <= columns.min() <= columns.max() <= right
            assert top - 1 <= rows.min() <= rows.max() <= bottom
    one, other = out.values()
    assert (one & other).sum() > 0.85 * (one | other).sum()


def test_integer_boxes_are_warped_as_floats():
    boxes = torch.tensor([[4, 4, 12, 12], [1, 2, 30, 19]])
    out = warp_boxes(boxes, MATRICES[:1].expand(2, 2, 3), SIZE[:1].expand(2, 2))
    torch.testing.assert_close(out, warp_boxes(boxes.float(), MATRICES[:1].expand(2, 2, 3), SIZE[:1].expand(2, 2)))
    assert ((out[:, 2:] - out[:, :2]) > 5).all()


def test_what_does_not_follow_is_refused():
    sample = SegDataSample(gt_depth_map=PixelData(data=torch.zeros(1, 20, 31)))
    with pytest.raises(ValueError, match=r'data_samples\.gt_depth_map: expected boxes or semantic label maps'):
        has_places([sample])
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=torch.rand(2, 4), labels=torch.zeros(2), masks=torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"gt_instances\.masks: expected mmdet's BitmapMasks or PolygonMasks"):
        has_places([sample])
