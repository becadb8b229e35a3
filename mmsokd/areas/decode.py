"""From heatmaps to boxes and from boxes to masks: vectorised, without a device-to-host sync.

Coordinates are in cells: cell (row i, column j) spans [j, j+1) x [i, i+1), as CenterNet's offsets count.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def keep_peaks(heat: Tensor) -> Tensor:
    """``heat`` (N, K, H, W) at the maxima of 3 x 3 neighbourhoods, zero elsewhere (CenterNet, arXiv:1904.07850)."""
    # By shifted copies, rows after columns: on a CPU ten times as fast as max_pool2d.
    padded = F.pad(heat, (1, 1, 1, 1), value=-torch.inf)
    wide = torch.maximum(torch.maximum(padded[..., :-2], padded[..., 1:-1]), padded[..., 2:])
    highest = torch.maximum(torch.maximum(wide[..., :-2, :], wide[..., 1:-1, :]), wide[..., 2:, :])
    return heat * (highest == heat).to(heat.dtype)


def decode(heat: Tensor, size: Tensor, offset: Tensor, num_areas: int) -> tuple[Tensor, Tensor]:
    """The boxes around the strongest peaks: centre + offset -/+ size/2, clamped to the map, at least one cell.

    Args:
        heat: scores (N, K, H, W) in [0, 1].
        size: width and height (N, 2, H, W), in cells.
        offset: of the centre from its cell's top left corner, x and y (N, 2, H, W), in cells.
        num_areas: how many boxes; at most the H*W cells are taken.

    Returns:
        Boxes (N, k, 4) as x1, y1, x2, y2 in cells, and scores (N, k), best first. Where a map has fewer than k peaks
        the rest have score zero, and :func:`area_count` leaves them out.
    """
    n, classes, height, width = heat.shape
    k = min(num_areas, height * width)
    scores, index = keep_peaks(heat).flatten(1).topk(k)  # over classes and positions
    cell = index % (height * width) if classes > 1 else index  # (N, k)
    there = torch.cat([offset, size], 1).flatten(2).gather(2, cell[:, None].expand(n, 4, k))  # (N, 4, k)
    dx, dy, w, h = there.unbind(1)
    x1, x2 = _interval(cell % width + dx, w, width)
    y1, y2 = _interval(cell // width + dy, h, height)
    return torch.stack([x1, y1, x2, y2], -1), scores


def _interval(centre: Tensor, side: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """``centre`` -/+ ``side`` / 2, clamped to [0, limit], at least a cell long. ``limit`` is a host number: no sync."""
    centre, half = centre.clamp(0, limit), side / 2
    low, high = (centre - half).clamp(min=0), (centre + half).clamp(max=limit)
    # What is shorter than a cell grows around its middle, and is pushed back where that leaves the map.
    grown = ((low + high) / 2 - 0.5).clamp(0, limit - 1)
    short = high - low < 1
    return torch.where(short, grown, low), torch.where(short, grown + 1, high)


def area_count(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
    """How many boxes cover each cell, by its centre.

    Two one-dimensional comparisons and one product a sample: (N, k, H, W) is never built.

    Args:
        boxes: (N, k, 4) in cells.
        scores: (N, k); boxes of score zero do not count.
        size: height and width of the map.

    Returns: (N, 1, H, W), float32.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = torch.arange(size[0], device=boxes.device) + 0.5
    columns = torch.arange(size[1], device=boxes.device) + 0.5
    inside_y = (rows >= y1[..., None]) & (rows < y2[..., None]) & (scores > 0)[..., None]  # (N, k, H)
    inside_x = (columns >= x1[..., None]) & (columns < x2[..., None])  # (N, k, W)
    with torch.autocast(boxes.device.type, enabled=False):
        return torch.bmm(inside_y.float().transpose(1, 2), inside_x.float())[:, None]


def area_weight(boxes: Tensor, scores: Tensor, size: tuple[int, int], overlap: str) -> Tensor:
    """The weight of each cell: 1 inside any box (``'union'``), or the number of boxes (``'sum'``) [authors' fork].

    Returns: (N, 1, H, W), float32.
    """
    count = area_count(boxes, scores, size)
    return (count > 0).float() if overlap == 'union' else count
