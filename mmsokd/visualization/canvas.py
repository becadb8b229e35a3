"""Drawings of pictures side by side, without a display."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

_PANEL = 2.6  # inches


def picture_grid(
    pictures: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]], title: str = ''
) -> tuple[Figure, list[list[Axes]]]:
    """A grid of pictures (h, w, 3) or maps (h, w), each with its title above; small ones are enlarged as they are.

    Returns: the figure and its axes, row by row; their coordinates are pixels, the first of which spans [0, 1).
    """
    rows, columns = len(pictures), len(pictures[0])
    ratio = pictures[0][0].shape[0] / pictures[0][0].shape[1]
    height = min(max(_PANEL * ratio, 0.8), 3 * _PANEL)
    with matplotlib.rc_context({'font.size': 9, 'axes.titlesize': 10, 'figure.titlesize': 11}):
        figure = Figure((columns * _PANEL, rows * (height + 0.35) + 0.75), dpi=120, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).tolist()
        for row in range(rows):
            for axis, picture, text in zip(axes[row], pictures[row], titles[row], strict=True):
                show(axis, picture)
                axis.set_title(text)
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.1, wspace=0.01)
        if title:
            figure.suptitle(title, fontweight='bold')
    return figure, axes


def show(axis: Axes, picture: np.ndarray, **kwargs: Any) -> AxesImage:
    """A picture, or a map, in pixels' coordinates; the arguments are ``imshow``'s."""
    height, width = picture.shape[:2]
    return axis.imshow(picture, extent=(0, width, height, 0), interpolation='nearest', **kwargs)


def rasterize(figure: Figure) -> np.ndarray:
    """The figure's pixels, RGB uint8 (H, W, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
