"""DR-KD: a teacher that errs is put right before the student learns from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsokd.checks import check_choice, check_integer, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.kd import ACTIVATIONS, kd_loss
from mmsokd.losses.logits import anchors_of, check_logits
from mmsokd.losses.targets import anchor_targets
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
    [ours], or mmseg's ``gt_sem_seg`` by the nearest pixel; where it is ignored the teacher stays as it is.

    Of a dense detector, with ``num_classes``, the anchors of the cells that a ground-truth box touches are put right
    and learned, each by its K classes, and no others: their class is that of the smallest such box. They stand for the
    positive anchors of the detector's assigner, which is not asked [ours]. Each level is a mean of its own. A two-stage
    head has one row a proposal and cannot be tapped.

    In the paper the teacher is the student's own earlier self, and an alpha of 0.95 weighs this loss against the
    cross-entropy's 0.05. Here the teacher is any, and the term's ``loss_weight`` weighs.

    Args:
        tau: temperature > 0, 6 in the paper.
        ignore_index: value of ``gt_sem_seg`` that is left as it is.
        activation: as :class:`~mmsokd.losses.KDLoss`'s: ``'sigmoid'`` where the head decides the classes one by one.
        num_classes: K of a dense detector, whose channels do not tell it from the anchors of a position; None for
            other models.
        teacher_channels: the distiller fills it in.

    Raises:
        ValueError: an argument is none of these, or ``num_classes`` does not divide the channels.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)
    wants_samples = True

    def __init__(
        self,
        tau: float = 6.0,
        ignore_index: int = 255,
        activation: str = 'softmax',
        num_classes: int | None = None,
        teacher_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive('DRKDLoss.tau', tau)
        check_choice('DRKDLoss.activation', activation, ACTIVATIONS)
        check_integer('DRKDLoss.ignore_index', ignore_index)
        if teacher_channels is not None:
            anchors_of('DRKDLoss', teacher_channels, num_classes)
        self.tau = tau
        self.activation = activation
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence[Any] | None = None) -> Tensor:
        """The loss, averaged over the predictions; with ``num_classes``, over those that have a class.

        Args:
            student, teacher: logits (N, K), (N, K, H, W), or a detector's (N, A K, H, W).
            samples: N data samples.

        Raises:
            ValueError: they are no logits of one shape, or the samples do not tell the classes.
        """
        check_logits(student, teacher)
        target = anchor_targets(samples, teacher, self.num_classes, self.ignore_index)
        weight = None
        if self.num_classes is not None:  # each anchor becomes a picture of its own
            anchors = teacher.shape[1] // self.num_classes
            student, teacher = (x.unflatten(1, (anchors, self.num_classes)).flatten(0, 1) for x in (student, teacher))
            target = target.repeat_interleave(anchors, 0)
            weight = (target >= 0).to(student.dtype)
        return kd_loss(student, rectified(teacher, target), self.tau, self.activation, weight)
