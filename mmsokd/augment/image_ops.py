"""TST's fourteen image operators: differentiable in their strength, and exact.

After "Teaching What You Should Teach", arXiv 2212.05422. The authors fit small networks that imitate each operator
(:mod:`~mmsokd.augment.image_priors`), since those of the libraries have no gradient; these are the operators themselves
[ours], equal to PIL's and torchvision's where those are defined. Names, order and ranges are the authors'; the signs
are ours: the released code never explores them.

They are written with torch alone. Why kornia's are not used, one by one: posterize and solarize have no gradient for
their strength. Equalize goes over pictures and channels in Python; it, sharpness and contrast (there
``adjust_contrast_with_mean_subtraction``) would take a batch's padding for part of the picture. The five warps have to
be summed as matrices about each picture's own centre, by which boxes, masks and label maps follow, so that only a
matrix each could be taken. Brightness (``adjust_brightness_accumulative``), color
(``adjust_saturation_with_gray_subtraction``) and invert would fit, and cutout but for its drawn centre: a line each,
and no reason for a dependency.

Pictures are (N, 3, H, W), RGB, in [0, 1]; ``v`` is one strength a picture (N,).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.augment.warping import Canvas, warp
from mmsokd.relax import straight_through

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as in PIL
# Of a grey level: a picture that was normalised and brought back is a little below the whole numbers it had.
_SLACK = 1e-2
_SOFT_EDGE = 0.1  # width of the threshold that Solarize's gradient sees [ours]
CUTOUT_SIDE = 0.25  # of the picture's; the paper's for CIFAR-100 (arXiv 1708.04552: 8 of 32); TST's is not known


# ---- colour ---------------------------------------------------------------------------------------------------------


def brightness(x: Tensor, v: Tensor, canvas: Canvas) -> Tensor:
    """Scale by ``1 + v``."""
    return _blend(torch.zeros_like(x), x, v)


def color(x: Tensor, v: Tensor, canvas: Canvas) -> Tensor:
    """Move away from the picture's grey version by ``v``, towards it where ``v < 0``."""
    return _blend(_grey(x), x, v)


def contrast(x: Tensor, v: Tensor, canvas: Canvas) -> Tensor:
    """Move away from the mean grey by ``v``. PIL rounds that mean to a whole level."""
    grey = _grey(x)
    if canvas.mask is None:
        mean = grey.mean(dim=(2, 3), keepdim=True)
    else:
        mean = (grey * canvas.mask).sum(dim=(2, 3), keepdim=True) / canvas.mask.sum(dim=(2, 3), keepdim=True)
    return _blend(mean, x, v)


def sharpness(x: Tensor, v: Tensor, canvas: Canvas) -> Tensor:
    """Move away from a smoothed version by ``v``; the outermost pixels stay, as in PIL. PIL rounds the smoothed one."""
    kernel = x.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = F.conv2d(x, kernel / 13, padding=1, groups=3)
    mask = torch.ones_like(x[:, :1]) if canvas.mask is None else canvas.mask
    inner = F.avg_pool2d(mask, 3, stride=1, padding=1) > 1 - 1e-3
    return _blend(torch.where(inner, smooth, x), x, v)


def posterize(x: Tensor, v: Tensor, canvas: Canvas) -> Tensor:
    """Drop the lowest ``v`` bits of 8, also of a fraction of a bit [ours]: grey levels become multiples of ``2^v``.

    The gradient is that of the levels' mean: what a pixel is rounded by is a constant fraction of ``2^v`` [ours]. The
    derivative between two jumps has the opposite sign of what the jumps do to the picture.
    """
    level = x * 255 + _SLACK
    step = torch.exp2(v)[:, None, None, None]
    fraction = torch.remainder(level / step, 1).detach()
    return (level - step * fraction) / 255


def solarize(x: Tensor, v: Tensor, canvas: Canvas) -> Tensor:
    """Invert what is not below ``v``; the gradient is that of a threshold with a soft edge [ours]."""
    above = x - v[:, None, None, None]
    hard = (above >= -_SLACK / 255).to(x.dtype)
    soft = (above / _SOFT_EDGE + 0.5).clamp(0, 1)
    return x + straight_through(hard, soft) * (1 - 2 * x)


@torch.no_grad()
def equalize(x: Tensor, v: Tensor | None, canvas: Canvas) -> Tensor:
    """Flatten each channel's histogram, as PIL does; it has no strength and no gradient."""
    N, C, H, W = x.shape
    level = (x * 255).round().clamp(0, 255).long().flatten(2)
    mask = torch.ones_like(x[:, :1]) if canvas.mask is None else canvas.mask
    counts = x.new_zeros(N, C, 256).scatter_add_(2, level, mask.to(x.dtype).expand(N, C, H, W).flatten(2))
    # PIL leaves the last level that occurs out of the step.
    last = (counts > 0).to(x.dtype).cumsum(2).argmax(2, keepdim=True)
    step = ((counts.sum(2, keepdim=True) - counts.gather(2, last)) / 255).floor()
    below = counts.cumsum(2) - counts
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device, dtype=x.dtype))
    return (table.gather(2, level) / 255).view(N, C, H, W)


def invert(x: Tensor, v: Tensor | None, canvas: Canvas) -> Tensor:
    """The negative; it has no strength."""
    return 1 - x


def cutout(x: Tensor, v: Tensor | None, canvas: Canvas) -> Tensor:
    """A grey rectangle of a quarter of the sides at the drawn centre; it has no strength."""
    H, W = x.shape[2:]
    rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) + 0.5 for n in (H, W))
    height, width = canvas.size.to(x)[:, :, None].unbind(1)  # (N, 1) each
    y, x_ = canvas.centre.to(x)[:, :, None].unbind(1)
    tall = (rows - y * height).abs() < CUTOUT_SIDE / 2 * height  # (N, H)
    wide = (columns - x_ * width).abs() < CUTOUT_SIDE / 2 * width
    return x.masked_fill(tall[:, None, :, None] & wide[:, None, None, :], 0.5)


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(_GREY)[:, None, None]).sum(dim=1, keepdim=True)


def _blend(poor: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """From the ``poor`` version through the picture (``v = 0``) and beyond it."""
    return (x + v[:, None, None, None] * (x - poor)).clamp(0, 1)


# ---- geometry: matrices (N, 2, 3), see warping.warp ------------------------------------------------------------------


def shear_x(v: Tensor, size: Tensor) -> Tensor:
    """Columns move with the distance from the middle row."""
    return _matrix(v, xy=v)


def shear_y(v: Tensor, size: Tensor) -> Tensor:
    """Rows move with the distance from the middle column."""
    return _matrix(v, yx=v)


def translate_x(v: Tensor, size: Tensor) -> Tensor:
    """The content moves right by the fraction ``v`` of the width."""
    return _matrix(v, x0=-v * size[:, 1])


def translate_y(v: Tensor, size: Tensor) -> Tensor:
    """The content moves down by the fraction ``v`` of the height."""
    return _matrix(v, y0=-v * size[:, 0])


def rotate(v: Tensor, size: Tensor) -> Tensor:
    """By ``v`` degrees about the centre, counter-clockwise as seen."""
    angle = torch.deg2rad(v)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _matrix(v, xx=cos, xy=-sin, yx=sin, yy=cos)


def _matrix(v: Tensor, **entries: Tensor) -> Tensor:
    one, zero = torch.ones_like(v), torch.zeros_like(v)
    start = dict(xx=one, xy=zero, x0=zero, yx=zero, yy=one, y0=zero)
    return torch.stack([entries.get(name, value) for name, value in start.items()], dim=-1).unflatten(-1, (2, 3))


# ---- the table ------------------------------------------------------------------------------------------------------


class ImageOp(NamedTuple):
    """An operator and its range.

    Attributes:
        function: ``(x, v, canvas) -> x``, or for a ``warps`` one ``(v, size) -> matrix``.
        lo, hi: strength at the magnitudes 0 and 1; None where the operator has no magnitude.
        signed: whether a random sign is given to the strength [ours].
        warps: whether it moves the content.
    """

    function: Callable[..., Tensor]
    lo: float | None = None
    hi: float | None = None
    signed: bool = False
    warps: bool = False

    def strength(self, magnitude: Tensor, sign: Tensor) -> Tensor:
        """``v`` (N,) of a magnitude in [0, 1] (a scalar) and signs (N,)."""
        v = self.lo + magnitude * (self.hi - self.lo)
        return v * sign if self.signed else v.expand_as(sign)

    def apply(self, x: Tensor, v: Tensor | None, canvas: Canvas) -> Tensor:
        """The operator's picture."""
        return warp(x, self.function(v, canvas.size.to(v)), canvas) if self.warps else self.function(x, v, canvas)


IMAGE_OPS: dict[str, ImageOp] = {
    'Brightness': ImageOp(brightness, 0.0, 0.9, signed=True),
    'Color': ImageOp(color, 0.0, 0.9, signed=True),
    'Contrast': ImageOp(contrast, 0.0, 0.9, signed=True),
    'Sharpness': ImageOp(sharpness, 0.0, 0.9, signed=True),
    'Posterize': ImageOp(posterize, 0.0, 4.0),  # bits that are dropped: 8 -> 4 are left
    'Solarize': ImageOp(solarize, 1.0, 0.0),
    'ShearX': ImageOp(shear_x, 0.0, 0.3, signed=True, warps=True),
    'ShearY': ImageOp(shear_y, 0.0, 0.3, signed=True, warps=True),
    'TranslateX': ImageOp(translate_x, 0.0, 150 / 331, signed=True, warps=True),
    'TranslateY': ImageOp(translate_y, 0.0, 150 / 331, signed=True, warps=True),
    'Rotate': ImageOp(rotate, 0.0, 30.0, signed=True, warps=True),  # degrees
    'Equalize': ImageOp(equalize),
    'Invert': ImageOp(invert),
    'Cutout': ImageOp(cutout),
}
