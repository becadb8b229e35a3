"""From heatmaps to boxes and from boxes to masks: vectorised, without a device-to-host sync.

Coordinates are in cells: cell (row i, column j) spans [j, j+1) x [i, i+1), as CenterNet's offsets count.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def keep_peaks(heat: Tensor) -> Tensor:
    """``heat`` (N, K, H, W) where it is the maximum of its 3 x 3 neighbourhood, zero elsewhere (CenterNet, arXiv:1904.07850)."""
    return heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat).to(heat.dtype)


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
    n, _, height, width = heat.shape
    k = min(num_areas, height * width)
    scores, index = keep_peaks(heat).flatten(1).topk(k)  # over classes and positions
    cell = index % (height * width)  # (N, k)

    def gather(maps: Tensor) -> Tensor:
        return maps.flatten(2).gather(2, cell[:, None].expand(n, 2, k)).transpose(1, 2)  # (N, k, 2)

    corner = torch.stack([cell % width, cell // width], -1).to(size.dtype)
    limit = torch.tensor([width, height], dtype=size.dtype, device=size.device)
    centre = (corner + gather(offset)).clamp(min=0.0).minimum(limit)
    half = gather(size) / 2
    low, high = (centre - half).clamp(min=0.0), (centre + half).minimum(limit)
    # A box of less than a cell grows around its middle, and is pushed back where that leaves the map.
    middle = (low + high) / 2
    grown = (high - low) < 1
    low = torch.where(grown, (middle - 0.5).clamp(min=0.0).minimum(limit - 1), low)
    high = torch.where(grown, low + 1, high)
    return torch.cat([low, high], -1), scores


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
