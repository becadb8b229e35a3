"""PKD: imitation up to scale and shift of each channel."""

from torch import Tensor

from mmsokd.checks import check_maps
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.standardize import standardize
from mmsokd.losses.weighting import mean_squared_error
from mmsokd.registry import MODELS

EPS = 1e-6  # which the published code adds to the standard deviation


@in_fp32
def pkd_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Half the mean squared error of standardized features (Cao et al., PKD, arXiv:2207.02039, eq. 5).

    .. math:: \frac{1}{2NCHW} \| \hat F_s - \hat F_t \|^2 = 1 - r

    with ``r`` the mean over the channels of Pearson's correlation: over the batch and the map, 0 for a channel that is
    constant there (:func:`~mmsokd.losses.standardize.standardize`).

    Args:
        student, teacher: features (N, C, H, W) of one shape.
            The distiller hands the teacher over without a graph.
        weight: position weights (N, 1, H, W); the mean is then taken over what they weigh, the statistics over all.

    Returns: scalar in [0, 2] (unweighted); zero iff each channel agrees up to scale > 0 and shift.

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    s, t = (standardize(x, (0, 2, 3), EPS) for x in (student, teacher))
    return 0.5 * mean_squared_error(s, t, weight)


@MODELS.register_module()
class PKDLoss(TermLoss):
    """:func:`pkd_loss` as a term's loss."""

    same_channels = True
    ranks = (4,)
    per_position = True

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`pkd_loss`."""
        return pkd_loss(student, teacher, weight)
