"""Values up to scale and shift, for the losses that correlate."""

from collections.abc import Sequence

import torch
from torch import Tensor


def standardize(x: Tensor, dim: int | Sequence[int], eps: float) -> Tensor:
    """Mean 0 and standard deviation 1 along ``dim``; what is constant there becomes zero, without a gradient [ours].

    So what hardly varies counts fully or as zero. The published codes let it fade: PKD's divides by ``std + eps``, and
    DIST's by the product of both lengths plus eps, which hands the rounding error of a constant a gradient of the order
    1 / eps.

    Args:
        x: any shape.
        dim: over which the statistics go.
        eps: what varies by a standard deviation below it counts as constant, as does what varies by less than 1e-6 of
            its root mean square, since rounding grows with the mean.
    """
    mean = x.mean(dim, keepdim=True)
    centred = x - mean
    var = centred.square().mean(dim, keepdim=True)
    varies = var > eps**2 + 1e-12 * (var + mean.square())
    scale = torch.where(varies, var.where(varies, torch.ones_like(var)).rsqrt(), 0.0)  # of the statistics' size
    return centred * scale
