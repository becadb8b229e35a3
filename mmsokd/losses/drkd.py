"""DR-KD: a teacher that errs is put right before the student learns from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsokd.checks import check_integer, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.kd import kd_loss
from mmsokd.losses.logits import check_logits
from mmsokd.losses.targets import targets
from mmsokd.registry import MODELS


def rectified(teacher: Tensor, target: Tensor) -> Tensor:
    """Logits whose largest is the true class's: both are swapped where it is not (Amik et al., arXiv:2201.11319).

    Args:
        teacher: logits (N, K) or (N, K, H, W).
        target: the true classes (N) or (N, H, W), int64; what is below 0 stays as it is.

    Returns: logits of the same shape, whose values are those of ``teacher`` in another order.
    """
    top, index = teacher.max(1, keepdim=True)
    true = target.unsqueeze(1)
    true = torch.where(true >= 0, true, index)
    return teacher.scatter(1, index, teacher.gather(1, true)).scatter(1, true, top)


@MODELS.register_module()
class DRKDLoss(TermLoss):
    """:func:`~mmsokd.losses.kd_loss` to a teacher that is :func:`rectified` (Amik et al., DR-KD, arXiv:2201.11319).

    The classes come from the data samples: mmpretrain's ``gt_label``, under mixup that of the largest ``gt_score``
    [ours], or mmseg's ``gt_sem_seg`` by the nearest pixel; where it is ignored the teacher stays as it is. A detector's
    predictions have no class before they are assigned: it is not supported.

    In the paper the teacher is the student's own earlier self, and an alpha of 0.95 weighs this loss against the
    cross-entropy's 0.05. Here the teacher is any, and the term's ``loss_weight`` weighs.

    Args:
        tau: temperature > 0, 6 in the paper.
        ignore_index: value of ``gt_sem_seg`` that is left as it is.

    Raises:
        ValueError: ``tau`` is not positive, or ``ignore_index`` no integer.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)
    wants_samples = True

    def __init__(self, tau: float = 6.0, ignore_index: int = 255) -> None:
        super().__init__()
        check_positive('DRKDLoss.tau', tau)
        check_integer('DRKDLoss.ignore_index', ignore_index)
        self.tau = tau
        self.ignore_index = ignore_index

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence[Any] | None = None) -> Tensor:
        """The loss, averaged over the predictions.

        Args:
            student, teacher: logits (N, K) or (N, K, H, W).
            samples: N data samples.

        Raises:
            ValueError: they are no logits of one shape, or the samples do not tell the classes.
        """
        check_logits(student, teacher)
        return kd_loss(student, rectified(teacher, targets(samples, teacher, self.ignore_index)), self.tau)
