"""After ITAL: predictions count by how far a step on them alone would bring the last layer to the teacher's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsokd.checks import check_integer, check_number, check_positive
from mmsokd.losses.base import LossResult, TermLoss, in_fp32
from mmsokd.losses.kd import kd_loss
from mmsokd.losses.logits import check_classes, check_feature, check_feature_and_logits, check_logits
from mmsokd.losses.targets import targets
from mmsokd.losses.weighting import effective
from mmsokd.registry import MODELS


@torch.no_grad()
def teaching_score(
    feature: Tensor, student: Tensor, teacher: Tensor, target: Tensor, lr: float = 0.05, beta: float = 1.0
) -> Tensor:
    r"""How welcome a prediction is to a teacher who knows where the student is (ITAL, arXiv:2110.00137).

    With the last layer w, its gradient g on this prediction alone, and the layer :math:`w^*` that is aimed at,

    .. math:: -\beta \big(\eta^2 |g|^2 - 2 \eta \langle w - w^*, g \rangle\big)
        = \beta \big(|w - w^*|^2 - |w - \eta g - w^*|^2\big)

    is by how much one step of the rate :math:`\eta` comes nearer. The gradient of a softmax's cross-entropy is
    :math:`g = (p - y) \otimes [h, 1]`, so that all is known in closed form:

    .. math:: |g|^2 = |p - y|^2 (|h|^2 + 1), \qquad \langle w - w^*, g \rangle = (p - y) \cdot (s - t)

    where :math:`s` and :math:`t` are what w and :math:`w^*` make of h. As :math:`t` the teacher's own logits are taken
    [ours]: there is no :math:`w^*` for the student's feature.

    Args:
        feature: h, (N, C) or (N, C, H, W): what the last layer sees.
        student, teacher: s and t, (N, K) or (N, K, H, W).
        target: the true classes (N) or (N, H, W), int64; what is below 0 has the lowest score there is.
        lr: the rate.
        beta: how choosy the teacher is.

    Returns: (N) or (N, H, W), a constant.
    """
    excess = student.softmax(1)
    true = target.clamp(min=0).unsqueeze(1)
    excess = excess.scatter_add(1, true, -torch.ones_like(excess[:, :1]))  # p - y
    size = excess.square().sum(1) * (feature.square().sum(1) + 1)
    towards = (excess * (student - teacher)).sum(1)
    score = -beta * (lr**2 * size - 2 * lr * towards)
    return score.masked_fill(target < 0, torch.finfo(score.dtype).min)


@MODELS.register_module()
class ITALLoss(TermLoss):
    """:func:`~mmsokd.losses.kd_loss` with predictions weighted by the softmax of their :func:`teaching_score`.

    After "Iterative Teacher-Aware Learning" (Yuan et al., NeurIPS 2021, arXiv:2110.00137), where a teacher chooses the
    next example by that score, and a learner who knows it draws conclusions from the choice. [ours]: the predictions of
    a batch are not chosen among but weighted, by the probabilities with which such a teacher would choose each; and the
    model that is taught is the last layer, whose gradients have a closed form.

    Tap what the last layer sees and, last, the output: ``tap=['neck', 'head.fc']``; a map is averaged over its
    positions where the output has none, as a classifier does. Of the teacher the output alone is looked at. The classes
    come from the data samples, as for :class:`~mmsokd.losses.DRKDLoss`; a detector's predictions have none before they
    are assigned: it is not supported.

    Args:
        student_channels, teacher_channels: of both levels; the distiller fills them in.
        lr: the rate of the step that is thought of, > 0; the optimizer's, say.
        beta: >= 0; 0 makes it KD where every prediction has a class.
        tau: temperature > 0 of KD.
        ignore_index: value of ``gt_sem_seg`` whose positions have no weight.

    Raises:
        ValueError: an argument is out of its range, or the levels are no feature and output of as many classes.
    """

    pyramid = True
    same_size = False
    on_logits = True
    ranks = (2, 4)
    wants_samples = True
    stats = ('ital.effective',)

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        lr: float = 0.05,
        beta: float = 1.0,
        tau: float = 4.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_positive('ITALLoss.lr', lr)
        check_number('ITALLoss.beta', beta)
        check_positive('ITALLoss.tau', tau)
        check_integer('ITALLoss.ignore_index', ignore_index)
        check_feature_and_logits('ITALLoss', student_channels, teacher_channels)
        check_classes('ITALLoss', student_channels[1])
        self.lr = lr
        self.beta = beta
        self.tau = tau
        self.ignore_index = ignore_index

    @in_fp32
    def forward(self, student: list[Tensor], teacher: list[Tensor], samples: Sequence[Any] | None = None) -> LossResult:
        """The loss; ``ital.effective``: as how large a part of the predictions they count.

        Args:
            student, teacher: a feature (N, C) or (N, C, H, W), and the logits (N, K) or (N, K, H, W).
            samples: N data samples.

        Raises:
            ValueError: the feature does not fit the logits, or the samples do not tell the classes.
        """
        (feature, logits), theirs = student, teacher[1]
        check_logits(logits, theirs)
        check_feature(feature, logits)
        if feature.dim() > logits.dim():
            feature = feature.mean((2, 3))
        target = targets(samples, logits, self.ignore_index)
        score = teaching_score(feature, logits, theirs, target, self.lr, self.beta)
        # Where there is no class at all, all have the lowest score, and none counts.
        weight = score.flatten().softmax(0).view_as(score) * (target >= 0)
        return LossResult(kd_loss(logits, theirs, self.tau, weight=weight), {'ital.effective': effective(weight)})
