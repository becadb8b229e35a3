"""ACKD: auxiliary learners beside the student, fused by attention, and a discriminator between them and the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import ModuleList
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_integer, check_norm, check_number, check_positive
from mmsokd.losses.base import LossResult, TermLoss, in_fp32
from mmsokd.losses.kd import kd_loss
from mmsokd.losses.logits import check_classes
from mmsokd.losses.mtkdssr import StageHead, check_stages
from mmsokd.losses.pooling import pooled
from mmsokd.losses.targets import cross_entropy, targets
from mmsokd.registry import MODELS
from mmsokd.relax import reversed_gradient


def attention_fusion(feats: Tensor, query: Tensor) -> Tensor:
    r"""Features of one width, weighted by how well each answers a learned query [ours].

    .. math:: f = \sum_k a_k e_k, \qquad a = \mathrm{softmax}_k \big( \langle q, e_k \rangle / \sqrt{C} \big)

    Args:
        feats: e, (L, ..., C).
        query: q, (C); zeros make it the mean.

    Returns: (..., C).
    """
    scores = feats @ query / len(query) ** 0.5  # (L, ...)
    return (scores.softmax(0).unsqueeze(-1) * feats).sum(0)


def discriminator_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Binary cross-entropy of a discriminator that takes the teacher's features for true.

    .. math:: -\tfrac12 \big( \overline{\log \sigma(d^T)} + \overline{\log (1 - \sigma(d^S))} \big)

    Args:
        student, teacher: what it says of each feature, as logits of any shape.

    Returns: scalar >= 0; log 2 where it cannot tell them apart.
    """
    return 0.5 * (F.softplus(student).mean() + F.softplus(-teacher).mean())


@MODELS.register_module()
class ACKDLoss(TermLoss):
    r"""After ACKD (Liu et al., Improved Knowledge Distillation via Adversarial Collaboration, arXiv:2111.14356).

    Of the paper the abstract was read: the student is built with several auxiliary learners, and an adversarial
    collaborative module, of attention and adversarial learning, makes it stronger, so that nothing need be left out of
    the teacher's knowledge. How is ours. Each stage k of the student gets a learner, a
    :class:`~mmsokd.losses.mtkdssr.StageHead` that ends in a feature :math:`e_k` as wide as the teacher's last stage;
    :func:`attention_fusion` makes one feature f of them, and one linear layer W the responses :math:`z_k = W e_k` and
    :math:`z = W f`. With the student's and the teacher's output s and t,

    .. math:: L = d \Big( \sum_k \mathrm{CE}(z_k, y) + \mathrm{CE}(z, y) \Big)
        + b \tau^2 \big( \mathrm{KL}(t \| z) + \mathrm{KL}(t \| s) \big) + c \tau^2 \mathrm{KL}(z \| s) + L_{adv}

    The targets are constants. :math:`L_{adv}`, :func:`discriminator_loss`, is of a small network that tells f from the
    mean over the map of the teacher's last stage. It learns to, by the whole loss; f learns the opposite, by
    ``adversarial_weight`` times its reversed gradient (Ganin and Lempitsky, arXiv:1409.7495), in the same backward:
    there is no second optimizer.

    Tap the stages and, last, the output: ``tap=['backbone.layer1', ..., 'backbone.layer4', 'head.fc']``. For dense
    logits all this is done position by position, on maps of their size. The true classes come from mmpretrain's
    ``gt_label`` or mmseg's ``gt_sem_seg``; a detector's predictions have none before they are assigned: it is not
    supported. Learners and discriminator belong to the term, so that no exported student has them.

    The log shows the unweighted parts: ``ackd.auxiliary`` (0 where it has no weight), ``ackd.teacher``, ``ackd.fused``
    and ``ackd.discriminator``, of which log 2 = 0.69 says that the fused feature passes for the teacher's.

    Args:
        student_channels, teacher_channels, signed: level by level; the distiller fills them in.
        auxiliary_weight, teacher_weight, fused_weight: d, b and c.
        adversarial_weight: of the reversed gradient; with 0 the discriminator only looks on.
        tau: temperature > 0 of all KL.
        head_channels: width between a learner's two convolutions, and of the discriminator.
        norm_cfg: norm layer of the learners (BN; SyncBN and GN work).
        ignore_index: value of ``gt_sem_seg`` that is left out.

    Raises:
        ValueError: an argument is out of its range, or the levels are no stages and outputs of as many classes.
    """

    pyramid = True
    same_size = False
    on_logits = True
    ranks = (2, 4)
    wants_samples = True
    stats = ('ackd.auxiliary', 'ackd.teacher', 'ackd.fused', 'ackd.discriminator')

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        signed: Sequence[bool],
        auxiliary_weight: float = 1.0,
        teacher_weight: float = 1.0,
        fused_weight: float = 1.0,
        adversarial_weight: float = 0.1,
        tau: float = 4.0,
        head_channels: int = 64,
        norm_cfg: Mapping | None = dict(type='BN'),
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        weights = dict(auxiliary=auxiliary_weight, teacher=teacher_weight, fused=fused_weight)
        for key, value in (*weights.items(), ('adversarial', adversarial_weight)):
            check_number(f'ACKDLoss.{key}_weight', value)
        check_positive('ACKDLoss.tau', tau)
        check_integer('ACKDLoss.head_channels', head_channels, 1)
        check_integer('ACKDLoss.ignore_index', ignore_index)
        if len(student_channels) < 2 or student_channels[-1] != teacher_channels[-1]:
            raise ValueError(
                'ACKDLoss: expected stages and, last, the output, of one number of classes on both sides, found '
                f'channels {[*student_channels]} of the student and {[*teacher_channels]} of the teacher; tap a '
                "list (tap=['backbone.layer3', 'backbone.layer4', 'head.fc'])"
            )
        *stages, num_classes = student_channels
        check_classes('ACKDLoss', num_classes)
        check_norm('ACKDLoss.norm_cfg', norm_cfg, head_channels)
        width, self.signed = teacher_channels[-2], signed[-2]
        self.weights = list(weights.values())
        self.adversarial_weight = adversarial_weight
        self.tau = tau
        self.ignore_index = ignore_index
        self.learners = ModuleList(StageHead(c, width, head_channels, norm_cfg) for c in stages)
        self.query = nn.Parameter(torch.zeros(width))
        self.classify = nn.Linear(width, num_classes)
        self.discriminate = nn.Sequential(
            nn.Linear(width, head_channels), nn.LeakyReLU(0.2), nn.Linear(head_channels, 1)
        )

    @in_fp32
    def forward(self, student: list[Tensor], teacher: list[Tensor], samples: Sequence[Any] | None = None) -> LossResult:
        """The weighted sum of the four parts.

        Args:
            student, teacher: the stages (N, C, H, W) and the logits, (N, K) or (N, K, H, W).
            samples: N data samples, for the learners.

        Raises:
            ValueError: a stage is no map, or the samples do not tell the classes.
        """
        ours, theirs = student[-1], teacher[-1]
        check_stages([*student[:-1], teacher[-2]])
        if theirs.shape != ours.shape:
            theirs = F.interpolate(theirs, ours.shape[2:], mode='bilinear', align_corners=False)
        feats, fused = self.learn(student[:-1], ours)
        target = _tokens(teacher[-2], ours)
        response = _as_logits(self.classify(fused), ours)
        parts = [
            self._auxiliary([*(_as_logits(self.classify(feat), ours) for feat in feats), response], samples),
            kd_loss(response, theirs, self.tau) + kd_loss(ours, theirs, self.tau),
            kd_loss(ours, response.detach(), self.tau),
            discriminator_loss(
                self.discriminate(reversed_gradient(fused, self.adversarial_weight)), self.discriminate(target)
            ),
        ]
        loss = sum(weight * part for weight, part in zip((*self.weights, 1.0), parts, strict=True))
        return LossResult(loss, {name: part.detach() for name, part in zip(self.stats, parts, strict=True)})

    def learn(self, stages: Sequence[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """The learners' features (L, N, P, C) and the fused one (N, P, C), of P positions: one, or as the logits."""
        dense = logits.dim() == 4
        feats = [_tokens(learner(stage, dense), logits) for learner, stage in zip(self.learners, stages, strict=True)]
        feats = torch.stack(feats)
        feats = feats if self.signed else feats.relu()
        return feats, attention_fusion(feats, self.query)

    def _auxiliary(self, responses: Sequence[Tensor], samples: Sequence[Any] | None) -> Tensor:
        if not self.weights[0]:  # no sample need tell a class
            return responses[0].new_zeros(())
        target = targets(samples, responses[0], self.ignore_index)
        return sum(cross_entropy(response, target) for response in responses)


def _tokens(feat: Tensor, logits: Tensor) -> Tensor:
    """A map, or a vector, as (N, P, C): its mean, or the positions of dense logits [ours, bilinear]."""
    if logits.dim() == 2:
        return pooled(feat)[:, None]
    return F.interpolate(feat, logits.shape[2:], mode='bilinear', align_corners=False).flatten(2).transpose(1, 2)


def _as_logits(rows: Tensor, logits: Tensor) -> Tensor:
    """(N, P, K) in the shape of the logits."""
    return rows[:, 0] if logits.dim() == 2 else rows.transpose(1, 2).unflatten(2, logits.shape[2:])
