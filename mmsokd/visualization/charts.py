"""Charts of columns of numbers, in one look for pages, files, light and dark."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Ten hues of one lightness, told apart on white and on black.
COLOURS = (
    '#4269d0', '#e8a317', '#ff725c', '#3ca951', '#a463f2', '#38b2ac', '#ff6fae', '#9c6b4e', '#7a9bf0', '#8a8f98',
)  # fmt: skip
_TEXT, _AXES, _GRID = '#30343b', '#8b93a1', '#e3e6eb'
_DARK = {_TEXT: '#dfe3ea', _GRID: '#343a45'}  # what a dark ground has in their place
_SIZE = (4.8, 3.0)  # inches; a phone shows one as it is
_MOST = 600  # points a line: more are not seen


_STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mmsokd',
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.labelcolor': _AXES,
    'axes.edgecolor': _AXES,
    'axes.facecolor': 'none',
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.prop_cycle': matplotlib.cycler(color=COLOURS),
    'figure.facecolor': 'none',
    'savefig.facecolor': 'none',
    'grid.color': _GRID,
    'grid.linewidth': 0.8,
    'xtick.color': _AXES,
    'ytick.color': _AXES,
    'text.color': _TEXT,
    'legend.frameon': False,
    'legend.fontsize': 8,
    'lines.linewidth': 1.6,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart; NaN leaves a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False  # one of many, without a place in the legend


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    lines: Sequence[Line]
    x: str
    y: str = ''
    log: bool = False  # where all values are positive
    level: tuple[str, float] | None = None  # a dashed line to compare with, and its name
    span: float = 0.0  # what the axis spans at least: less is no change that matters


@dataclass(frozen=True)
class Matrix:
    """A square of numbers, with one name for its rows and columns; NaN leaves a cell empty."""

    title: str
    names: Sequence[str]
    values: np.ndarray
    unit: str
    span: float = 0.0  # what the colours span at least


def draw(charts: Sequence[Chart | Matrix], columns: int = 1) -> Figure:
    """The charts in a grid of so many columns.

    Args:
        charts: at least one.
        columns: of the grid.

    Returns: the figure, on a clear ground.
    """
    columns = min(columns, len(charts))
    rows = math.ceil(len(charts) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure((columns * _SIZE[0], rows * _SIZE[1]), dpi=120, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, chart in zip(axes, charts, strict=False):
            (_draw_lines if isinstance(chart, Chart) else _draw_matrix)(axis, chart)
        for axis in axes[len(charts) :]:
            axis.set_visible(False)
    return figure


def _draw_lines(axis, chart: Chart) -> None:
    named = [line for line in chart.lines if not line.faint]
    for line in chart.lines:
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        step = max(1, math.ceil(len(x) / _MOST))
        chosen = np.unique(np.r_[np.arange(0, len(x), step), len(x) - 1]) if len(x) else []
        few = len(x) <= 12
        if line.faint:
            axis.plot(x[chosen], y[chosen], color=_AXES, linewidth=0.7, alpha=0.4)
        else:
            axis.plot(x[chosen], y[chosen], label=line.label, marker='o' if few else None, markersize=3.5)
    if chart.level is not None:
        name, value = chart.level
        axis.axhline(value, color=_AXES, linewidth=1, linestyle='--', label=name)
    values = [v for line in chart.lines for v in line.y if math.isfinite(v)]
    if chart.log and values and min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale('log')
    axis.set_ylim(*_widened(*axis.get_ylim(), chart.span))
    axis.set_title(chart.title)
    axis.set_xlabel(chart.x)
    axis.set_ylabel(chart.y)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.margins(x=0.02)
    if len(named) > 1 or chart.level is not None:
        many = len(named) > 4
        place = dict(loc='center left', bbox_to_anchor=(1, 0.5)) if many else dict(loc='best')
        axis.legend(handlelength=1.2, labelspacing=0.25, **place)


def _widened(low: float, high: float, span: float) -> tuple[float, float]:
    """The range, or one of ``span`` around its middle where it is smaller."""
    spare = max(0.0, span - (high - low)) / 2
    return low - spare, high + spare


def _draw_matrix(axis, chart: Matrix) -> None:
    low, high = _widened(np.nanmin(chart.values), np.nanmax(chart.values), chart.span)
    grid = axis.pcolormesh(chart.values, cmap='viridis', edgecolors='none', vmin=low, vmax=high)
    axis.invert_yaxis()
    axis.set_aspect('equal', anchor='W')  # elsewhere the names at its left are cut off
    axis.grid(False)
    ticks = np.arange(len(chart.names)) + 0.5
    axis.set_xticks(ticks, chart.names, rotation=90)
    axis.set_yticks(ticks, chart.names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(chart.title)
    bar = axis.inset_axes((1.04, 0, 0.05, 1))
    axis.figure.colorbar(grid, cax=bar, label=chart.unit).outline.set_visible(False)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure for any ground: PNG on white, or whatever the ending of ``path`` says.

    Raises:
        OSError: it cannot be written.
        ValueError: matplotlib knows no such kind of file.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor='white')


def svg_uris(chart: Chart | Matrix) -> tuple[str, str]:
    """A chart as ``data:`` URIs, for a light ground and for a dark one."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        draw([chart]).savefig(file, format='svg', metadata=dict(Date=None, Creator=None))
    light = dark = file.getvalue()
    for ink, other in _DARK.items():
        dark = dark.replace(ink.encode(), other.encode())
    return data_uri(light, 'image/svg+xml'), data_uri(dark, 'image/svg+xml')


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a ``data:`` URI."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'
