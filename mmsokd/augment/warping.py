"""Pictures, boxes, instance masks and label maps under one affine map (pure functions).

A map is a matrix (N, 2, 3) in pixels about the picture's centre: the output's point ``p`` reads the input at
``A (p - c) + c + a``. Boxes and polygons go the other way. A batch's pictures lie in its upper left corner.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

MIN_SIDE = 1.0  # pixels; a warped box with a shorter side is dropped [ours]
_BOXES = ('gt_instances', 'ignored_instances')
_LABELS = 'gt_sem_seg'
_REFUSED = ('gt_edge_map', 'gt_depth_map', 'gt_panoptic_seg', 'proposals')


class Canvas(NamedTuple):
    """Where the pictures lie in a batch, and what Cutout draws.

    Attributes:
        size: (N, 2), height and width of each picture in pixels.
        mask: (N, 1, H, W), 1 on the pictures and 0 on the padding; None where there is no padding.
        centre: (N, 2), y and x of Cutout's rectangle, in [0, 1).
    """

    size: Tensor
    mask: Tensor | None
    centre: Tensor

    @classmethod
    def of(cls, x: Tensor, shapes: list[tuple[int, int]], centre: Tensor) -> 'Canvas':
        """For pictures of these ``shapes`` in the batch ``x`` (N, C, H, W); ``centre`` comes from the host."""
        H, W = x.shape[2:]
        size = torch.tensor(shapes, dtype=torch.float32).to(x.device, non_blocking=True)
        centre = centre.to(x.device, non_blocking=True)
        if all(shape == (H, W) for shape in shapes):
            return cls(size, None, centre)
        rows = torch.arange(H, device=x.device) < size[:, :1]
        columns = torch.arange(W, device=x.device) < size[:, 1:]
        return cls(size, (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype), centre)


def identity(n: int, like: Tensor) -> Tensor:
    """The map (n, 2, 3) that moves nothing."""
    return torch.eye(2, 3, device=like.device, dtype=like.dtype).expand(n, 2, 3)


def _sources(matrix: Tensor, size: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """Column and row (N, H, W) that each output pixel's centre reads, in pixels."""
    cy, cx = (size.to(matrix) / 2)[:, :, None, None].unbind(1)  # (N, 1, 1) each
    x = torch.arange(W, device=matrix.device, dtype=matrix.dtype)[None, None, :] + 0.5 - cx
    y = torch.arange(H, device=matrix.device, dtype=matrix.dtype)[None, :, None] + 0.5 - cy
    (xx, xy, x0), (yx, yy, y0) = (row.unbind(1) for row in matrix[..., None, None].unbind(1))
    return xx * x + xy * y + x0 + cx, yx * x + yy * y + y0 + cy


def warp(x: Tensor, matrix: Tensor, canvas: Canvas) -> Tensor:
    """Warp pictures (N, C, H, W), bilinearly; black comes in from outside, and the padding is black."""
    H, W = x.shape[2:]
    if canvas.mask is not None:
        x = x * canvas.mask
    columns, rows = _sources(matrix, canvas.size, H, W)
    grid = torch.stack([columns * (2 / W) - 1, rows * (2 / H) - 1], dim=-1).to(x.dtype)
    out = F.grid_sample(x, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    return out if canvas.mask is None else out * canvas.mask


def warp_labels(labels: Tensor, matrix: Tensor, size: Tensor, fill: int) -> Tensor:
    """Warp label maps (N, 1, H, W) by the nearest pixel; ``fill`` comes in from outside of the picture."""
    H, W = labels.shape[2:]
    columns, rows = _sources(matrix, size, H, W)
    height, width = size.to(matrix)[:, :, None, None].unbind(1)
    column, row = columns.floor(), rows.floor()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    y = torch.arange(H, device=labels.device)[None, :, None] < height
    x = torch.arange(W, device=labels.device)[None, None, :] < width
    source = row.clamp(0, H - 1).long() * W + column.clamp(0, W - 1).long()
    warped = labels.flatten(2).gather(2, source.flatten(1)[:, None]).view_as(labels)
    return warped.masked_fill(~(inside & x & y)[:, None], fill)


def warp_boxes(boxes: Tensor, matrix: Tensor, size: Tensor) -> Tensor:
    """The upright hulls of warped boxes (n, 4), clipped to the picture.

    Args:
        boxes: left, top, right, bottom in pixels.
        matrix: (n, 2, 3), each box's own.
        size: (n, 2), height and width of its picture.
    """
    boxes = boxes if boxes.is_floating_point() else boxes.float()
    left, top, right, bottom = boxes.unbind(-1)
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=-1).unflatten(-1, (4, 2))
    moved = _destinations(corners, matrix, size)  # (n, 4, 2)
    limit = size.to(boxes).flip(-1)[:, None]  # (n, 1, 2), x and y
    moved = torch.minimum(moved.clamp(min=0), limit)
    return torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=-1)


def _destinations(points: Tensor, matrix: Tensor, size: Tensor) -> Tensor:
    """Where the input's points (n, P, 2), x and y, are in the output."""
    centre = size.to(points).flip(-1)[:, None] / 2  # (n, 1, 2)
    matrix = matrix.to(points)
    linear, shift = matrix[:, :, :2], matrix[:, None, :, 2]
    (a, b), (c, d) = (row.unbind(-1) for row in linear.unbind(-2))
    inverse = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2)) / (a * d - b * c)[:, None, None]
    # By hand and not as a matrix product, which autocast would do in half precision.
    return ((points - centre - shift)[:, :, None, :] * inverse[:, None]).sum(-1) + centre


def warp_masks(masks: Any, matrix: Tensor, size: Tensor) -> Any:
    """Warp the masks of one picture, on the host as they are: bitmaps by the nearest pixel, polygons by their corners.

    Args:
        masks: mmdet's ``BitmapMasks`` or ``PolygonMasks``.
        matrix: (2, 3), on the host.
        size: (2,), height and width of the picture, on the host.
    """
    if isinstance(masks.masks, np.ndarray):
        n = len(masks)
        bitmaps = torch.from_numpy(masks.masks)[:, None]
        warped = warp_labels(bitmaps, matrix.expand(n, 2, 3), size.expand(n, 2), fill=0)[:, 0].numpy()
    else:
        warped = [[_warp_polygon(polygon, matrix, size) for polygon in polygons] for polygons in masks.masks]
    return type(masks)(warped, masks.height, masks.width)


def _warp_polygon(polygon: np.ndarray, matrix: Tensor, size: Tensor) -> np.ndarray:
    points = torch.from_numpy(np.asarray(polygon, dtype=np.float64)).view(1, -1, 2)
    return _destinations(points, matrix[None], size[None]).flatten().numpy().astype(polygon.dtype)


def has_places(samples: list) -> bool:
    """Whether the annotations say where something is.

    Raises:
        ValueError: they hold what does not follow a warp: boxes that are no tensors, edges, depth.
    """
    for sample in samples:
        for name in _REFUSED:
            if name in sample:
                raise ValueError(
                    f'data_samples.{name}: expected boxes or semantic label maps, which follow the warp, found it'
                )
        for name in _BOXES:
            if name in sample:
                _check_instances(f'data_samples.{name}', sample.get(name))
    return any(name in sample for sample in samples for name in (*_BOXES, _LABELS))


def _check_instances(key: str, instances: InstanceData) -> None:
    if 'masks' in instances and not isinstance(getattr(instances.masks, 'masks', None), (np.ndarray, list)):
        raise ValueError(
            f"{key}.masks: expected mmdet's BitmapMasks or PolygonMasks, which follow the warp, found "
            f'{type(instances.masks).__name__}'
        )
    if 'bboxes' in instances and not isinstance(instances.bboxes, Tensor):
        raise ValueError(
            f'{key}.bboxes: expected a tensor (boxtype2tensor=True of the data preprocessor), found '
            f'{type(instances.bboxes).__name__}'
        )


def warp_samples(samples: list[BaseDataElement], matrix: Tensor, size: Tensor, fill: int = 255) -> list:
    """Copies of mmdet's or mmseg's samples with boxes, masks and label maps warped; degenerate boxes are dropped.

    Args:
        samples: one a picture; :func:`has_places` has looked at them.
        matrix: (N, 2, 3), without a graph.
        size: (N, 2), height and width of the pictures.
        fill: label of what comes in from outside.
    """
    samples = [sample.clone() for sample in samples]  # the fields are shared, until they are set anew
    for name in _BOXES:
        _warp_instances(name, samples, matrix, size)
    labelled = [i for i, sample in enumerate(samples) if _LABELS in sample]
    for key in samples[labelled[0]].gt_sem_seg.keys() if labelled else ():
        maps = torch.stack([samples[i].gt_sem_seg.get(key) for i in labelled])  # (n, 1, H, W)
        for i, labels in zip(labelled, warp_labels(maps, matrix[labelled], size[labelled], fill), strict=True):
            samples[i].gt_sem_seg = PixelData(**{**dict(samples[i].gt_sem_seg.items()), key: labels})
    return samples


def _warp_instances(name: str, samples: list, matrix: Tensor, size: Tensor) -> None:
    """Warp the boxes of the field ``name`` in place of the samples' old ones, all in one go, and their masks."""
    chosen = [i for i, sample in enumerate(samples) if name in sample and len(sample.get(name))]
    if not chosen:
        return
    counts = [len(samples[i].get(name)) for i in chosen]
    owner = torch.tensor([i for i, count in zip(chosen, counts, strict=True) for _ in range(count)])
    owner = owner.to(matrix.device, non_blocking=True)
    boxes = warp_boxes(torch.cat([samples[i].get(name).bboxes for i in chosen]), matrix[owner], size[owner])
    good = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(-1)
    # The step's one wait for the device: how many boxes are left decides shapes, and a detector's heads ask for each
    # picture's next, when they assign its boxes.
    good = good.cpu()
    if any('masks' in samples[i].get(name) for i in chosen):
        matrix, size = matrix.cpu(), size.cpu()
    for i, moved, left in zip(chosen, boxes.split(counts), good.split(counts), strict=True):
        rows = left.nonzero().squeeze(1)  # on the host
        index = rows.to(boxes.device, non_blocking=True)
        instances = samples[i].get(name)[index]
        instances.bboxes = moved[index]
        if 'masks' in instances:
            instances.masks = warp_masks(instances.masks, matrix[i], size[i])
        samples[i].set_field(instances, name, dtype=type(instances))
