"""Similarity-preserving knowledge distillation."""

from torch import Tensor
from torch.nn import functional as F

from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.registry import MODELS


def similarities(feat: Tensor) -> Tensor:
    """Inner products of the batch's features with each other: (N, ...) -> (N, N), each row of l2 norm 1."""
    rows = feat.flatten(1)
    return F.normalize(rows @ rows.t(), dim=1)


@in_fp32
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of the similarities (Tung and Mori, SP, arXiv:1907.09682, sec. 3).

    .. math:: \frac{1}{N^2} \| G_s - G_t \|^2, \quad G_{[i]} = (Q Q^T)_{[i]} / \| (Q Q^T)_{[i]} \|_2

    Args:
        student, teacher: features (N, ...) and (N, ...): channels and sizes may differ.
            The distiller hands the teacher over without a graph.

    Returns: scalar >= 0; zero iff the similarities agree, as those of a batch of one do.
    """
    return F.mse_loss(similarities(student), similarities(teacher))


@MODELS.register_module()
class SPLoss(TermLoss):
    """:func:`sp_loss` as a term's loss. Take a ``loss_weight`` around 3000, as the benchmarks do."""

    same_size = False

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`sp_loss`."""
        return sp_loss(student, teacher)
