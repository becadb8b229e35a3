"""VID: the teacher's feature under a Gaussian whose mean is the student's."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_maps, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.weighting import mean_over_positions
from mmsokd.registry import MODELS


@in_fp32
def vid_loss(student: Tensor, teacher: Tensor, variance: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Negative log-likelihood of the teacher's feature (Ahn et al., VID, arXiv:1904.05835).

    .. math:: \frac{1}{NCHW} \sum \frac{(F_t - F_s)^2}{2 \sigma_c^2} + \frac12 \log \sigma_c^2

    The mean over all elements, as in RepDistiller, without the constant.

    Args:
        student: the mean (N, C, H, W), an adapter's output.
        teacher: (N, C, H, W). The distiller hands it over without a graph.
        variance: > 0, one a channel (C,).
        weight: position weights (N, 1, H, W); the mean is then taken over what they weigh.

    Returns: scalar of any sign; the least, for given variances, iff both agree (where weighed).

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    variance = variance.view(1, -1, 1, 1)
    return mean_over_positions(0.5 * ((student - teacher) ** 2 / variance + variance.log()), weight)


@MODELS.register_module()
class VIDLoss(TermLoss):
    """:func:`vid_loss` with a learned variance a channel, ``softplus(raw) + eps``.

    The mean is the term's adapter, by default a 1x1 :class:`~mmsokd.adapters.ConvAdapter`, which learns even where the
    channels agree [ours: the paper's regressor is a stack of 1x1 convs].

    The loss may become negative, as the logarithm of a density does.

    Args:
        teacher_channels: the distiller fills them in.
        init_variance: what the variances start at, as in RepDistiller.
        eps: their lower bound.

    Raises:
        ValueError: an argument is not positive, or ``init_variance`` not above ``eps``.
    """

    same_channels = True
    ranks = (4,)
    per_position = True
    default_adapter = 'mmsokd.ConvAdapter'

    def __init__(self, teacher_channels: int, init_variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        check_positive('VIDLoss.eps', eps)
        check_positive('VIDLoss.init_variance', init_variance)
        if init_variance <= eps:
            raise ValueError(f'VIDLoss.init_variance: expected a number above eps, {eps!r}, found {init_variance!r}')
        self.eps = eps
        start = init_variance - eps
        raw = start + math.log(-math.expm1(-start))  # the inverse of softplus
        self.raw = nn.Parameter(torch.full((teacher_channels,), raw))

    @property
    def variance(self) -> Tensor:
        """(C,), at least ``eps``."""
        return F.softplus(self.raw) + self.eps

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`vid_loss`."""
        return vid_loss(student, teacher, self.variance, weight)
