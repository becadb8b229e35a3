"""FitNet's hint loss."""

from torch import Tensor

from mmsokd.checks import check_same_shape
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.weighting import mean_squared_error
from mmsokd.registry import MODELS


@in_fp32
def fitnet_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Mean squared error of two features (Romero et al., FitNets, arXiv:1412.6550, eq. 3).

    .. math:: \frac{1}{NCHW} \| F_s - F_t \|^2

    The paper sums and halves; the benchmarks that everybody compares with take the mean, and so do we.

    Args:
        student, teacher: features (N, C, H, W), or any equal shape.
            The distiller hands the teacher over without a graph.
        weight: position weights (N, 1, H, W), e.g. SoKD's areas; the mean is then taken over what they weigh.

    Returns: scalar >= 0; zero iff both agree (where weighed).

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student, teacher)
    return mean_squared_error(student, teacher, weight)


@MODELS.register_module()
class FitNetLoss(TermLoss):
    """:func:`fitnet_loss` as a term's loss."""

    same_channels = True
    per_position = True

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`fitnet_loss`."""
        return fitnet_loss(student, teacher, weight)
