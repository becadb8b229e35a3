"""FitNet's hint loss."""

from torch import Tensor

from mmsokd.checks import check_bool, check_same_shape
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.weighting import mean_squared_error
from mmsokd.registry import MODELS
from mmsokd.scale import power_of


@in_fp32
def fitnet_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None, normalized: bool = False) -> Tensor:
    r"""Mean squared error of two features (Romero et al., FitNets, arXiv:1412.6550, eq. 3).

    .. math:: \frac{1}{NCHW} \| F_s - F_t \|^2

    The paper sums and halves; the benchmarks that everybody compares with take the mean, and so do we.

    Args:
        student, teacher: features (N, C, H, W), or any equal shape.
            The distiller hands the teacher over without a graph.
        weight: position weights (N, 1, H, W), e.g. SoKD's areas; the mean is then taken over what they weigh.
        normalized: divide by the teacher's :func:`~mmsokd.scale.power_of`, over all of its positions [ours]. Without
            ``weight`` 1 is then a student that says nothing, whatever the teacher's scale.

    Returns: scalar >= 0; zero iff both agree (where weighed).

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student, teacher)
    loss = mean_squared_error(student, teacher, weight)
    return loss / power_of(teacher) if normalized else loss


@MODELS.register_module()
class FitNetLoss(TermLoss):
    """:func:`fitnet_loss` as a term's loss.

    Args:
        normalized: whether each level counts relative to its own scale in the teacher. The plain error is as large as
            the square of the teacher's feature, so that a ``loss_weight`` which fits one teacher drowns the task losses
            of another's student.

    Raises:
        ValueError: ``normalized`` is no bool.
    """

    same_channels = True
    per_position = True

    def __init__(self, normalized: bool = False) -> None:
        super().__init__()
        check_bool('FitNetLoss.normalized', normalized)
        self.normalized = normalized

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`fitnet_loss`."""
        return fitnet_loss(student, teacher, weight, self.normalized)
