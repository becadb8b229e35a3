"""Decoupled knowledge distillation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsokd.checks import check_integer, check_number, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.logits import check_classes, check_logits, divergence
from mmsokd.losses.targets import labelled_mean, targets
from mmsokd.registry import MODELS


@in_fp32
def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0
) -> Tensor:
    r"""Divergence for the target class and among the others, apart (Zhao et al., DKD, arXiv:2203.08679, sec. 3).

    .. math:: \tau^2 (\alpha\, \mathrm{KL}(b_t \| b_s) + \beta\, \mathrm{KL}(\hat p_t \| \hat p_s))

    with ``b`` the softened probabilities of (target, not target), ``p^`` those of the other classes among themselves.
    ``alpha = 1, beta = 1 - p_t(target)`` is KD. The factor tau^2 is the authors' code's.

    Args:
        student, teacher: logits (N, K) or (N, K, H, W), K >= 2. The distiller hands the teacher over without a graph.
        target: the true classes (N) or (N, H, W), int64; below 0 is left out of the mean.
        alpha, beta: weights of the two parts.
        tau: temperature.

    Returns: scalar >= 0, the mean over what is not left out; zero iff the softened predictions agree there.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_logits(student, teacher)
    if student.shape[1] < 2 or target.shape != (len(student), *student.shape[2:]):
        raise ValueError(
            'expected logits of at least 2 classes and one target a prediction, found logits '
            f'{tuple(student.shape)}, targets {tuple(target.shape)}'
        )
    index = target.clamp(min=0).unsqueeze(1)
    (s_pair, s_others), (t_pair, t_others) = _decouple(student / tau, index), _decouple(teacher / tau, index)
    value = alpha * divergence(t_pair, s_pair) + beta * divergence(t_others, s_others)
    return tau**2 * labelled_mean(value, target)


def _decouple(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target), and of the other classes among themselves with 0 for the target."""
    is_target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, index, True)
    others = logits.masked_fill(is_target, -torch.inf)
    pair = torch.cat([logits.gather(1, index), others.logsumexp(1, keepdim=True)], 1).log_softmax(1)
    return pair, others.log_softmax(1).masked_fill(is_target, 0.0)  # 0 on both sides: no part in the divergence


@MODELS.register_module()
class DKDLoss(TermLoss):
    """:func:`dkd_loss` as a term's loss. The classes come from the data samples, so it is for classes and segments.

    Class logits need mmpretrain's ``gt_label``; with mixup or cutmix the class of the largest ``gt_score`` counts
    [ours]. Dense logits need mmseg's ``gt_sem_seg``, which is brought to their size by the nearest pixel. A detector's
    predictions have no class before they are assigned: it is not supported.

    Args:
        alpha, beta: weights of the target's part and the others'. The authors take 1 and 8 for ResNet32x4 -> ResNet8x4
            on CIFAR-100, 1 and 0.5 on ImageNet.
        tau: temperature > 0; theirs is 4 on CIFAR-100, 1 on ImageNet.
        ignore_index: value of ``gt_sem_seg`` that is left out.
        teacher_channels: K; the distiller fills it in.

    Raises:
        ValueError: ``alpha`` or ``beta`` is negative, ``tau`` not positive, or ``ignore_index`` no integer.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)
    wants_samples = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        tau: float = 4.0,
        ignore_index: int = 255,
        teacher_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_number('DKDLoss.alpha', alpha)
        check_number('DKDLoss.beta', beta)
        check_positive('DKDLoss.tau', tau)
        check_classes('DKDLoss', teacher_channels)
        check_integer('DKDLoss.ignore_index', ignore_index)
        self.alpha = alpha
        self.beta = beta
        self.tau = tau
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence[Any] | None = None) -> Tensor:
        """See :func:`dkd_loss`.

        Raises:
            ValueError: the samples do not tell the classes.
        """
        target = targets(samples, student, self.ignore_index)
        return dkd_loss(student, teacher, target, self.alpha, self.beta, self.tau)
