"""After DPD's gate: predictions count by how much better the teacher does there than the student."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_integer, check_number, check_positive
from mmsokd.losses.base import LossResult, TermLoss, in_fp32
from mmsokd.losses.kd import kd_loss
from mmsokd.losses.logits import check_classes, check_logits
from mmsokd.losses.targets import targets
from mmsokd.losses.weighting import effective
from mmsokd.registry import MODELS


@torch.no_grad()
def advantage_weight(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float = 0.5, clip: float = 100.0
) -> Tensor:
    r"""How much a prediction counts (after Lai et al., Dual Policy Distillation, arXiv:2006.04061).

    .. math:: w = \mathrm{clip}\big(e^{\alpha (\mathrm{CE}(s, y) - \mathrm{CE}(t, y))}, 1/c, c\big)

    In DPD two policies that learn side by side each imitate the other in a state by how much more that is worth there,
    as their value functions estimate it; here the true class's cross-entropy stands for the value [ours].

    Args:
        student, teacher: logits (N, K) or (N, K, H, W).
        target: the true classes (N) or (N, H, W), int64; what is below 0 has the weight 1.
        alpha: of the difference; 0.5 in the authors' code of DPD on PPO, 0.75 on DDPG.
        clip: c >= 1; 100 in the authors' code.

    Returns: (N) or (N, H, W), a constant.
    """
    target, limit = target.clamp(min=-1), math.log(clip)
    ours, theirs = (F.cross_entropy(x, target, ignore_index=-1, reduction='none') for x in (student, teacher))
    return (alpha * (ours - theirs)).clamp(-limit, limit).exp()


@MODELS.register_module()
class DPDLoss(TermLoss):
    """:func:`~mmsokd.losses.kd_loss` with predictions weighted by :func:`advantage_weight`: a DPD-style gate.

    Dual policy distillation (arXiv:2006.04061) is mutual learning of two students in reinforcement learning. With a
    frozen teacher its gate alone is left, in one direction: the student learns most where the teacher is better, and
    hardly where the student is. As a ``mutual`` term of :class:`~mmsokd.distillers.OnlineDistiller` it acts both ways.
    As in the authors' code the weights are divided by their sum over the batch.

    The classes come from the data samples, as for :class:`~mmsokd.losses.DRKDLoss`; a detector's predictions have none
    before they are assigned: it is not supported.

    Args:
        alpha: >= 0; 0 makes it KD.
        clip: >= 1.
        tau: temperature > 0 of KD.
        ignore_index: value of ``gt_sem_seg`` whose positions have the weight 1.
        teacher_channels: K; the distiller fills it in.

    Raises:
        ValueError: an argument is out of its range, or there is one class alone.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)
    wants_samples = True
    stats = ('dpd.effective',)

    def __init__(
        self,
        alpha: float = 0.5,
        clip: float = 100.0,
        tau: float = 4.0,
        ignore_index: int = 255,
        teacher_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_number('DPDLoss.alpha', alpha)
        check_number('DPDLoss.clip', clip, 1)
        check_positive('DPDLoss.tau', tau)
        check_integer('DPDLoss.ignore_index', ignore_index)
        check_classes('DPDLoss', teacher_channels)
        self.alpha = alpha
        self.clip = clip
        self.tau = tau
        self.ignore_index = ignore_index

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence[Any] | None = None) -> LossResult:
        """The loss; ``dpd.effective``: as how large a part of the predictions they count.

        Args:
            student, teacher: logits (N, K) or (N, K, H, W).
            samples: N data samples.

        Raises:
            ValueError: they are no logits of one shape, or the samples do not tell the classes.
        """
        check_logits(student, teacher)
        target = targets(samples, student, self.ignore_index)
        weight = advantage_weight(student, teacher, target, self.alpha, self.clip)
        return LossResult(kd_loss(student, teacher, self.tau, weight=weight), {'dpd.effective': effective(weight)})
