"""Ground-truth boxes on a feature map, for the losses that look at them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence


def boxes_in_cells(samples: Sequence | None, feat: Tensor) -> Tensor:
    """The pictures' ground-truth boxes in the cells of a map, which covers the padded batch.

    Args:
        samples: one a picture, as mmdet's preprocessor leaves them: ``gt_instances.bboxes`` (n, 4) as corners in input
            pixels, a tensor or ``HorizontalBoxes``, and ``batch_input_shape`` or ``pad_shape`` in the metainfo.
        feat: the map (N, C, H, W).

    Returns: corners (x1, y1, x2, y2) of shape (N, most boxes + 1, 4) in ``feat``'s dtype. What a picture lacks is
        filled up with NaN, which lies nowhere; there is at least one such row.

    Raises:
        ValueError: a sample has no boxes of four corners, or does not tell its input's size.
    """
    boxes = [_boxes_of(sample) for sample in samples or [None]]
    padded = F.pad(pad_sequence(boxes, batch_first=True, padding_value=torch.nan), (0, 0, 0, 1), value=torch.nan)
    padded = padded.to(feat.device, feat.dtype, non_blocking=True)
    sides = [(w, h, w, h) for h, w in (feat.shape[-2:], *map(_input_size, samples))]
    sides = torch.tensor(sides, dtype=feat.dtype).to(feat.device, non_blocking=True)  # in one copy, without waiting
    cells, pixels = sides[0], sides[1:, None]
    return padded * cells / pixels  # multiplied first: a box that ends with a cell then ends there exactly


def cells_of(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which rows and columns of a map each box touches; at least one of each, if the box begins inside the map.

    Args:
        boxes: corners in cells (N, n, 4); NaN touches nothing.
        size: height and width of the map.

    Returns: rows (N, n, H) and columns (N, n, W), bool.
    """
    low = boxes[..., :2].floor()
    high = torch.maximum(boxes[..., 2:].ceil(), low + 1)
    y, x = (torch.arange(side, device=boxes.device) for side in size)
    rows = (y >= low[..., 1:]) & (y < high[..., 1:])
    columns = (x >= low[..., :1]) & (x < high[..., :1])
    return rows, columns


def labels_in_cells(samples: Sequence | None, feat: Tensor) -> Tensor:
    """The class of the smallest ground-truth box that touches each cell of a map; of equal ones, of the first.

    Args:
        samples: as :func:`boxes_in_cells` takes them, with ``gt_instances.labels`` (n).
        feat: the map (N, C, H, W).

    Returns: (N, H, W), int64; -1 where there is no box.

    Raises:
        ValueError: as :func:`boxes_in_cells` does.
    """
    boxes = boxes_in_cells(samples, feat)  # (N, n, 4)
    rows, columns = cells_of(boxes, feat.shape[-2:])
    inside = rows[..., :, None] & columns[..., None, :]  # (N, n, H, W)
    sides = boxes[..., 2:] - boxes[..., :2]
    area = torch.where(inside, sides.prod(-1)[..., None, None], torch.inf)
    labels = pad_sequence([sample.gt_instances.labels for sample in samples], batch_first=True, padding_value=-1)
    labels = F.pad(labels, (0, 1), value=-1).to(feat.device, non_blocking=True)  # (N, n)
    smallest = area.argmin(1).flatten(1)  # (N, H W)
    found = labels.gather(1, smallest).view(-1, *feat.shape[-2:])
    return found.masked_fill(~inside.any(1), -1)


def _boxes_of(sample: object) -> Tensor:
    boxes = getattr(getattr(sample, 'gt_instances', None), 'bboxes', None)
    boxes = getattr(boxes, 'tensor', boxes)
    if not isinstance(boxes, Tensor) or boxes.shape[-1] != 4:
        found = 'none' if sample is None else sorted(sample.keys()) if hasattr(sample, 'keys') else type(sample)
        if isinstance(boxes, Tensor):
            found = tuple(boxes.shape)
        raise ValueError(
            f"expected a detector's data samples with gt_instances.bboxes (n, 4), found {found}; this loss needs "
            'ground-truth boxes'
        )
    return boxes


def _input_size(sample: object) -> tuple[int, int]:
    metainfo = sample.metainfo
    size = metainfo.get('batch_input_shape', metainfo.get('pad_shape'))
    if size is None:
        raise ValueError(f"metainfo: expected 'batch_input_shape' or 'pad_shape', found {sorted(metainfo)}")
    return size[:2]
