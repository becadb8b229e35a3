"""ReviewKD's loss: features compared at several scales. The fusion of the levels is its adapter."""

from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_maps
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.weighting import mean_over_positions
from mmsokd.registry import MODELS

SCALES = (4, 2, 1)  # sides of the pooled maps


@in_fp32
def hcl_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Hierarchical context loss of one level (Chen et al., ReviewKD, arXiv:2104.09044, sec. 3.3).

    .. math:: \frac{\sum_k 2^{-k}\, \mathrm{mse}(P_k F_s, P_k F_t)}{\sum_k 2^{-k}}

    ``P_0`` is the identity, and ``P_k`` the mean pooling to 4 x 4, 2 x 2 and 1 x 1 cells. A scale that pools nothing
    is left out, and a side shorter than the scale is kept [ours; the published code has square maps].

    Args:
        student, teacher: features (N, C, H, W) of one shape.
            The distiller hands the teacher over without a graph.
        weight: position weights (N, 1, H, W). A pooled cell is then the mean of what they weigh in it, and counts by
            their mean there [ours], so that what lies outside of the weights has no say at any scale.

    Returns: scalar >= 0; zero iff both agree (where weighed).

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    difference = student - teacher
    total, share, shares = mean_over_positions(difference**2, weight), 1.0, 1.0
    for scale in SCALES:
        size = tuple(min(scale, side) for side in difference.shape[-2:])
        if size == difference.shape[-2:]:
            continue
        share /= 2
        shares += share
        total = total + share * mean_over_positions(*_pool(difference, weight, size))
    return total / shares


def _pool(difference: Tensor, weight: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """The squared (weighted) mean difference of each cell, and the cells' weights."""
    if weight is None:
        return F.adaptive_avg_pool2d(difference, size) ** 2, None
    weight = weight.to(difference.dtype)
    cover = F.adaptive_avg_pool2d(weight, size)
    mean = F.adaptive_avg_pool2d(difference * weight, size) / (cover + (cover == 0))
    return mean**2, cover


@MODELS.register_module()
class ReviewKDLoss(TermLoss):
    """:func:`hcl_loss` as a term's loss, by default on levels fused by :class:`~mmsokd.adapters.ReviewKDAdapter`.

    Tap all levels at once (``neck``, or a backbone that returns a tuple), ordered from fine to coarse. ``adapter=None``
    compares the levels as they are.
    """

    same_channels = True
    ranks = (4,)
    per_position = True
    default_adapter = 'mmsokd.ReviewKDAdapter'

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`hcl_loss`."""
        return hcl_loss(student, teacher, weight)
