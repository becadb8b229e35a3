"""PKD: imitation up to scale and shift of each channel."""

import torch
from torch import Tensor

from mmsokd.checks import check_same_shape
from mmsokd.losses.base import TermLoss
from mmsokd.losses.weighting import mean_over_positions
from mmsokd.registry import MODELS


def standardize(feat: Tensor, eps: float = 1e-6) -> Tensor:
    """Each channel with mean 0 and standard deviation 1 over the batch and the map.

    Args:
        feat: (N, C, H, W). A constant channel becomes zero, without a gradient [ours: the published code divides by
            ``std + eps``, which hands a dead channel a gradient of the order 1 / eps].
        eps: a channel counts as constant when its standard deviation is below ``eps`` times its root mean square.
    """
    mean = feat.mean((0, 2, 3), keepdim=True)
    centred = feat - mean
    var = centred.square().mean((0, 2, 3), keepdim=True)
    alive = var > eps**2 * (var + mean.square())  # relative, since rounding grows with the mean
    return torch.where(alive, centred * var.where(alive, torch.ones_like(var)).rsqrt(), 0.0)


def pkd_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Half the mean squared error of standardized features (Cao et al., PKD, arXiv:2207.02039, eq. 5).

    .. math:: \frac{1}{2NCHW} \| \hat F_s - \hat F_t \|^2 = 1 - r

    with ``r`` the mean over the channels of Pearson's correlation.

    Args:
        student, teacher: features (N, C, H, W) of one shape.
            The distiller hands the teacher over without a graph.
        weight: position weights (N, 1, H, W); the mean is then taken over what they weigh, the statistics over all.

    Returns: scalar in [0, 2] (unweighted); zero iff each channel agrees up to scale > 0 and shift.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student, teacher)
    return 0.5 * mean_over_positions((standardize(student) - standardize(teacher)) ** 2, weight)


@MODELS.register_module()
class PKDLoss(TermLoss):
    """:func:`pkd_loss` as a term's loss."""

    same_channels = True
    per_position = True

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`pkd_loss`."""
        return pkd_loss(student, teacher, weight)
