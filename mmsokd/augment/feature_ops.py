"""The nine feature operations: pure functions of a feature, a strength and given randomness, and their table.

Operations and ranges follow the authors' development fork; units, Cutout, Noise and ChannelShuffle are mended (ours,
said at each). Every op takes ``feat`` (N, C, H, W), ``v`` (N,) and its :class:`Randomness`, on one device, keeps the
feature's dtype and memory format, and never waits for the device.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.relax import straight_through

SHUFFLE_GROUPS = 4  # ours: the fork's description gives no number


class Randomness(NamedTuple):
    """All random numbers that an operation can need on a level; uniforms in [0, 1) but for the last.

    Attributes:
        centre: (N, 2), x and y of Cutout's rectangle.
        order: (C,), rank of the shuffled channels in their group.
        chosen: (C,), the lowest ones are shuffled.
        keep: (N, C), a channel stays where it is at least the chance to drop.
        noise: (N, C, H, W), standard normal; None where no operation asks for it.
    """

    centre: Tensor
    order: Tensor
    chosen: Tensor
    keep: Tensor
    noise: Tensor | None = None


# ---- affine: the warp is computed in float32, since a float16 grid is off by whole cells on large maps -------------


def shear_x(feat: Tensor, v: Tensor, rand: Randomness | None = None) -> Tensor:
    """Sample at ``(x + v y, y)``, in coordinates where the map spans [-1, 1]."""
    return _warp(feat, xy=v)


def shear_y(feat: Tensor, v: Tensor, rand: Randomness | None = None) -> Tensor:
    """Sample at ``(x, v x + y)``, in coordinates where the map spans [-1, 1]."""
    return _warp(feat, yx=v)


def translate_x(feat: Tensor, v: Tensor, rand: Randomness | None = None) -> Tensor:
    """Sample ``v`` widths further right: the content moves left by the fraction ``v`` of the width.

    The fork multiplies ``v`` by the number of cells, which pushes the map out of view; a width is 2 in grid units.
    """
    return _warp(feat, x0=2 * v)


def translate_y(feat: Tensor, v: Tensor, rand: Randomness | None = None) -> Tensor:
    """Sample ``v`` heights further down: the content moves up by the fraction ``v`` of the height."""
    return _warp(feat, y0=2 * v)


def rotate(feat: Tensor, v: Tensor, rand: Randomness | None = None) -> Tensor:
    """Rotate about the centre by ``v`` degrees, counter-clockwise as seen (y points down), true also when H != W."""
    H, W = feat.shape[2:]
    angle = torch.deg2rad(v)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _warp(feat, xx=cos, xy=-sin * (H / W), yx=sin * (W / H), yy=cos)


def _warp(
    feat: Tensor,
    xx: Tensor | float = 1.0,
    xy: Tensor | float = 0.0,
    x0: Tensor | float = 0.0,
    yx: Tensor | float = 0.0,
    yy: Tensor | float = 1.0,
    y0: Tensor | float = 0.0,
) -> Tensor:
    """Output cell (x, y) reads the input at ``(xx x + xy y + x0, yx x + yy y + y0)``; zero outside."""
    wide = _wide(feat)
    # By hand and not by F.affine_grid: that is a matrix product, which autocast would do in half precision.
    N, _, H, W = feat.shape
    x = (_cells(W, wide) * 2 - 1)[None, None, :]
    y = (_cells(H, wide) * 2 - 1)[None, :, None]
    xx, xy, x0, yx, yy, y0 = [
        c.to(wide)[:, None, None] if isinstance(c, Tensor) else c for c in (xx, xy, x0, yx, yy, y0)
    ]
    columns, rows = xx * x + xy * y + x0, yx * x + yy * y + y0
    grid = torch.stack([columns.expand(N, H, W), rows.expand(N, H, W)], dim=-1)
    return _like(F.grid_sample(wide, grid, mode='bilinear', padding_mode='zeros', align_corners=False), feat)


# ---- the others ----------------------------------------------------------------------------------------------------


def cutout(feat: Tensor, v: Tensor, rand: Randomness) -> Tensor:
    """Zero a rectangle of whole cells in each sample.

    Ours (the fork draws one place for the batch and rounds to nothing on small maps): each side is ``v`` times the
    map's, rounded, and at least one cell where ``v > 0``; a rectangle that would leave the map is moved back inside.

    The value is hard. The gradient for ``v`` is that of a rectangle with an edge one cell soft.

    Args:
        feat: (N, C, H, W).
        v: (N,), side as a fraction of the map's.
        rand: its ``centre``.
    """
    v = v.to(_wide_dtype(feat))
    H, W = feat.shape[2:]
    hard_x, soft_x = _cutout_axis(W, v, rand.centre[:, 0].to(v))
    hard_y, soft_y = _cutout_axis(H, v, rand.centre[:, 1].to(v))
    hard = 1 - hard_y[:, None, :, None] * hard_x[:, None, None, :]
    soft = 1 - soft_y[:, None, :, None] * soft_x[:, None, None, :]
    return _like(feat * straight_through(hard, soft).to(feat.dtype), feat)


def _cutout_axis(size: int, v: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Hard and soft cover (N, size) of an interval along one axis."""
    cells = torch.arange(size, device=v.device, dtype=v.dtype) + 0.5
    wish = v * size
    side = (wish.detach().round().clamp(min=1, max=size)) * (v.detach() > 0)
    start = torch.minimum((centre * size - side / 2).round().clamp(min=0), size - side)
    distance = (cells - (start + side / 2)[:, None]).abs()
    hard = (distance < (side / 2)[:, None]).to(v.dtype)
    soft = (wish[:, None] / 2 + 0.5 - distance).clamp(0, 1)
    return hard, soft


def add_noise(feat: Tensor, v: Tensor, rand: Randomness) -> Tensor:
    """``feat + v * std * noise``, with each channel's own standard deviation over its sample's cells.

    Relative, where the fork adds absolute noise (ours): features have no unit. A map of one cell gets none to speak of.

    Args:
        feat: (N, C, H, W).
        v: (N,), relative to the std.
        rand: its ``noise``.
    """
    wide = _wide(feat)
    # The floor keeps the square root's derivative finite on a constant channel.
    std = wide.var(dim=(2, 3), keepdim=True, unbiased=False).clamp_min(1e-12).sqrt()
    return _like(wide + v.to(wide)[:, None, None, None] * std * rand.noise.to(wide), feat)


def channel_shuffle(feat: Tensor, v: Tensor, rand: Randomness) -> Tensor:
    """Permute the fraction ``v`` of the channels among themselves, inside groups of neighbouring channels.

    The fork permutes all, whatever the strength; the fraction is ours.

    Args:
        feat: (N, C, H, W).
        v: (N,), fraction in [0, 1].
        rand: its ``chosen`` and ``order``, one permutation for the batch as in the fork.
    """
    N, C = feat.shape[:2]
    index = torch.arange(C, device=feat.device)
    group = index * max(1, min(SHUFFLE_GROUPS, C // 2)) // C
    chosen = rand.chosen.argsort().argsort() < (v[:, None] * C).round()
    place = (index / C).expand(N, C)
    # In both orders a group's chosen channels come first and the others keep their places, so that pairing the two
    # orders maps the chosen among themselves and every other channel to itself.
    block = group * 4 + 2 * (~chosen)
    to = (block + place).argsort(dim=1)
    source = (block + torch.where(chosen, rand.order.to(place), place)).argsort(dim=1)
    permutation = torch.empty_like(to).scatter_(1, to, source)
    return _like(feat[torch.arange(N, device=feat.device)[:, None], permutation], feat)


def channel_drop(feat: Tensor, v: Tensor, rand: Randomness) -> Tensor:
    """Keep each channel of each sample with probability ``1 - v``.

    Args:
        feat: (N, C, H, W).
        v: (N,), chance to drop, below 1.
        rand: its ``keep``.
    """
    return _like(feat * (rand.keep >= v[:, None]).to(feat.dtype)[:, :, None, None], feat)


def rescaled_channel_drop(feat: Tensor, v: Tensor, rand: Randomness) -> Tensor:
    """:func:`channel_drop` over ``1 - v``, which keeps the mean as dropout does; the fork does not [ours]."""
    return _like(_wide(channel_drop(feat, v, rand)) / (1 - v.to(_wide_dtype(feat)))[:, None, None, None], feat)


def _cells(size: int, like: Tensor) -> Tensor:
    """Centres of ``size`` cells on [0, 1]."""
    return (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size


def _wide_dtype(feat: Tensor) -> torch.dtype:
    return torch.float64 if feat.dtype == torch.float64 else torch.float32


def _wide(feat: Tensor) -> Tensor:
    return feat.to(_wide_dtype(feat))


def _like(out: Tensor, feat: Tensor) -> Tensor:
    """``out`` in the dtype and memory format of ``feat``."""
    last = feat.is_contiguous(memory_format=torch.channels_last) and not feat.is_contiguous()
    return out.to(feat.dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# ---- the table -----------------------------------------------------------------------------------------------------


class FeatureOp(NamedTuple):
    """An operation and its range.

    Attributes:
        function: ``(feat, v, randomness) -> feat``.
        lo, hi: what the levels 0 and 1 of the magnitude mean.
        unit: of ``lo`` and ``hi``.
        differentiable: whether the result has a derivative for ``v``.
    """

    function: Callable[[Tensor, Tensor, Randomness], Tensor]
    lo: float
    hi: float
    unit: str
    differentiable: bool = True

    def strength(self, level: Tensor) -> Tensor:
        """``v`` of a level in [0, 1]."""
        return self.lo + level * (self.hi - self.lo)


FEATURE_OPS: dict[str, FeatureOp] = {
    'ShearX': FeatureOp(shear_x, -0.3, 0.3, 'half width / half height'),
    'ShearY': FeatureOp(shear_y, -0.3, 0.3, 'half height / half width'),
    'TranslateX': FeatureOp(translate_x, -0.45, 0.45, 'width'),
    'TranslateY': FeatureOp(translate_y, -0.45, 0.45, 'height'),
    'Rotate': FeatureOp(rotate, -30.0, 30.0, 'degrees'),
    'Cutout': FeatureOp(cutout, 0.0, 0.2, 'side of the map'),
    'Noise': FeatureOp(add_noise, 0.0, 0.1, "channel's std"),
    'ChannelShuffle': FeatureOp(channel_shuffle, 0.0, 1.0, 'channels', differentiable=False),
    'ChannelDrop': FeatureOp(channel_drop, 0.0, 0.5, 'channels', differentiable=False),
}
