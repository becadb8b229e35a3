"""Detected areas, and both networks' heatmaps, on the input pictures."""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Stroke
from torch import Tensor

from mmsokd.areas import Detection
from mmsokd.visualization.canvas import picture_grid, rasterize, show

LEVEL_COLOURS = ('#3ee06a', '#ffd23f', '#ff8c42', '#ff4d5e', '#e05cff')  # from fine to coarse


def draw_areas(
    pictures: Sequence[np.ndarray], levels: Sequence[Detection], strides: Sequence[int], title: str = ''
) -> list[np.ndarray]:
    """One drawing a picture: the picture with the areas' boxes, the student's heatmap on it, and the teacher's.

    The heatmaps are means over the levels. In each level both networks share one scale, from the coldest to the hottest
    cell of the two, so that a network that has collapsed is seen to be even.

    Args:
        pictures: RGB uint8 (h, w, 3), without padding.
        levels: level by level, what the areas' detector found in the batch.
        strides: of the levels, pixels a cell: cell 0 begins where the picture does.
        title: of each drawing.

    Returns:
        RGB images uint8 (H, W, 3).
    """
    return [rasterize(areas_figure(image, levels, strides, i, title)) for i, image in enumerate(pictures)]


def areas_figure(
    picture: np.ndarray, levels: Sequence[Detection], strides: Sequence[int], sample: int, title: str = ''
) -> Figure:
    """The drawing of one picture, which is number ``sample`` of the batch; see :func:`draw_areas`."""
    size = picture.shape[:2]
    heats = heat_on(size, levels, strides, sample)
    grey = np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, 2)  # below colours that mean something
    titles = ['detected areas', "student's heatmap", "teacher's heatmap"]
    figure, axes = picture_grid([[picture, grey, grey]], [titles], title)
    handles = []
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        colour = LEVEL_COLOURS[i % len(LEVEL_COLOURS)]
        boxes = boxes_on(size, level.boxes[sample], level.scores[sample], stride)
        for x1, y1, x2, y2 in boxes:
            box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.6)
            # a dark line below, so that it is seen on what is bright
            box.set_path_effects([Stroke(linewidth=3, foreground='#000000aa'), Stroke(linewidth=1.6)])
            axes[0][0].add_patch(box)
        count = f'{len(boxes)} area{"" if len(boxes) == 1 else "s"}'
        handles.append(Line2D([], [], color=colour, linewidth=3, label=f'stride {stride}: {count}'))
    for axis, heat in zip(axes[0][1:], heats, strict=True):
        shown = show(axis, heat, cmap='inferno', alpha=0.65, vmin=0, vmax=1)
    legend = dict(ncols=min(len(handles), 3), frameon=False, handlelength=1.2, columnspacing=1.2)
    figure.legend(handles=handles, loc='outside lower left', **legend)
    bar = figure.colorbar(shown, ax=axes[0], orientation='horizontal', anchor=(1, 0), shrink=0.4, aspect=40, pad=0.02)
    bar.set_ticks([0, 1], labels=['cold', 'hot'])
    bar.outline.set_visible(False)
    bar.solids.set(alpha=1)
    return figure


def boxes_on(size: tuple[int, int], boxes: Tensor, scores: Tensor, stride: int) -> list[list[float]]:
    """Boxes (k, 4) in cells as x1, y1, x2, y2 in pixels, cut at the picture's edges.

    Those of score zero, and those that lie in the padding, are left out.
    """
    height, width = size
    found = []
    for box, score in zip(boxes.tolist(), scores.tolist(), strict=True):
        x1, y1, x2, y2 = (value * stride for value in box)
        if score > 0 and x1 < width and y1 < height:
            found.append([x1, y1, min(x2, width), min(y2, height)])
    return found


def heat_on(
    size: tuple[int, int], levels: Sequence[Detection], strides: Sequence[int], sample: int
) -> tuple[np.ndarray, np.ndarray]:
    """The student's and the teacher's heatmap (h, w) in [0, 1] of one picture: the mean of the levels' stretched ones.

    A level whose cells are all alike counts as cold.
    """
    total = np.zeros((2, *size), np.float32)
    for level, stride in zip(levels, strides, strict=True):
        pair = (heat[sample].amax(0).float().cpu().numpy() for heat in (level.student, level.teacher))
        both = np.stack([_enlarge(heat, stride, size) for heat in pair])
        total += (both - both.min()) / max(float(np.ptp(both)), 1e-6)
    student, teacher = total / len(levels)
    return student, teacher


def _enlarge(cells: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """A map of cells in pixels; what lies beyond the picture is cut off."""
    rows, columns = cells.shape
    large = cv2.resize(cells, (columns * stride, rows * stride), interpolation=cv2.INTER_LINEAR)[: size[0], : size[1]]
    missing = [(0, side - own) for side, own in zip(size, large.shape, strict=True)]
    return np.pad(large, missing, mode='edge')  # a stride that was rounded leaves the last pixels without a cell
