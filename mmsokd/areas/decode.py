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


@torch.no_grad()
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
    there = cell[:, None].expand(n, 2, k)
    # Both axes at once, x before y: (N, 2, k).
    corner = torch.stack([cell % width, cell // width], 1)
    centre = _within(offset.flatten(2).gather(2, there) + corner, width, height)
    half = size.flatten(2).gather(2, there) / 2
    low, high = (centre - half).clamp_(min=0), _within(centre + half, width, height)
    # What is shorter than a cell grows around its middle, and is pushed back where that leaves the map. What is longer
    # reaches beyond that on both sides, and stays.
    low = torch.minimum(low, _within((low + high - 1) / 2, width - 1, height - 1))
    return torch.cat([low, torch.maximum(high, low + 1)], 1).transpose(1, 2), scores


def _within(place: Tensor, width: int, height: int) -> Tensor:
    """``place`` (N, 2, k), clamped in place to the map. Both limits are host numbers: no sync."""
    place[:, 0].clamp_(0, width)
    place[:, 1].clamp_(0, height)
    return place


@torch.no_grad()
def area_count(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
    """How many boxes cover each cell, by its centre.

    One-dimensional comparisons and one product a sample: (N, k, H, W) is never built.

    Args:
        boxes: (N, k, 4) in cells.
        scores: (N, k); boxes of score zero do not count.
        size: height and width of the map.

    Returns: (N, 1, H, W), float32.
    """
    cells = torch.arange(0.5, max(size), device=boxes.device)[:, None, None, None]  # centres, along either axis
    # Zeros and ones, with the boxes in the last dimension: on a CPU booleans and short rows take several times as long.
    past = (cells - boxes.transpose(1, 2)).ge_(0)  # (L, N, 4, k): whether a centre lies on an edge or behind it
    x, y = past[:, :, :2].gt_(past[:, :, 2:]).unbind(2)  # inside: past the first edge, and not past the second
    y.mul_(scores > 0)
    with torch.autocast(boxes.device.type, enabled=False):
        return torch.bmm(y[: size[0]].transpose(0, 1), x[: size[1]].permute(1, 2, 0))[:, None].float()


def area_weight(boxes: Tensor, scores: Tensor, size: tuple[int, int], overlap: str) -> Tensor:
    """The weight of each cell: 1 inside any box (``'union'``), or the number of boxes (``'sum'``) [authors' fork].

    Returns: (N, 1, H, W), float32.
    """
    count = area_count(boxes, scores, size)
    return count.clamp_(max=1) if overlap == 'union' else count
