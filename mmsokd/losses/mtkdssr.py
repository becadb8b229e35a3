"""MTKD-SSR: a teacher's channels and responses stage by stage, and a student that reviews its own deeper stages."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import ModuleList
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_choice, check_integer, check_norm, check_number, check_positive
from mmsokd.losses.base import LossResult, TermLoss, in_fp32
from mmsokd.losses.kd import ACTIVATIONS, kd_loss
from mmsokd.losses.pooling import pooled
from mmsokd.losses.targets import cross_entropy, targets
from mmsokd.registry import MODELS

REVIEWS = ('next', 'all')


@in_fp32
def channel_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared difference of the channels' means over the map (after Zhou et al., arXiv:2006.01683).

    .. math:: \frac{1}{N C} \sum \| \mathrm{GAP}(F_s) - \mathrm{GAP}(F_t) \|^2

    Args:
        student, teacher: (N, C, H, W), of any sizes.

    Returns: scalar >= 0; zero iff the means agree.
    """
    return F.mse_loss(pooled(student), pooled(teacher))


@in_fp32
def response_loss(student: Tensor, target: Tensor, tau: float = 4.0, activation: str = 'softmax') -> Tensor:
    """:func:`~mmsokd.losses.kd_loss` to a constant target, which is brought to the student's size [ours, bilinear].

    Args:
        student, target: responses (N, K) or (N, K, H, W) and (N, K, H', W').
        tau: temperature.
        activation: ``'softmax'`` or ``'sigmoid'``.

    Returns: scalar >= 0.
    """
    target = target.detach()
    if student.dim() == 4 and target.shape[-2:] != student.shape[-2:]:
        target = F.interpolate(target, student.shape[-2:], mode='bilinear', align_corners=False)
    return kd_loss(student, target, tau, activation)


@in_fp32
def review_loss(responses: list[Tensor], tau: float = 4.0, activation: str = 'softmax', review: str = 'next') -> Tensor:
    """The sum of each response's :func:`response_loss` to the next deeper one, or to all deeper ones.

    Args:
        responses: of the student, from the first stage to the output.
        tau, activation: as above.
        review: ``'next'`` or ``'all'``.

    Returns: scalar >= 0; zero of a single response.
    """
    total = responses[-1].new_zeros(())
    for k, response in enumerate(responses[:-1]):
        deeper = responses[k + 1 :] if review == 'all' else responses[k + 1 : k + 2]
        total = total + sum(response_loss(response, x, tau, activation) for x in deeper)
    return total


class StageHead(nn.Module):
    """A stage's response: conv 3x3, norm, ReLU, and a 1x1 conv to the classes; their mean over the map for pictures.

    Args:
        in_channels: of the stage.
        num_classes: of the response.
        channels: between both convs.
        norm_cfg: norm layer, or None.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int, norm_cfg: Mapping | None) -> None:
        super().__init__()
        self.conv = ConvModule(in_channels, channels, 3, padding=1, norm_cfg=norm_cfg)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, feat: Tensor, dense: bool) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W) if ``dense``, else (N, K)."""
        logits = self.classify(self.conv(feat))
        return logits if dense else pooled(logits)


def check_stages(stages: Sequence[Tensor]) -> None:
    """Raise ValueError unless all are maps."""
    for stage in stages:
        if stage.dim() != 4:
            raise ValueError(
                f'expected maps (N, C, H, W) for all stages, found {tuple(stage.shape)}; tap the output last'
            )


@MODELS.register_module()
class MTKDSSRLoss(TermLoss):
    r"""After MTKD-SSR (Gou et al., Multi-target Knowledge Distillation via Student Self-reflection, IJCV 131, 2023).

    .. math:: a \sum_{k \le K} SCD_k + b \sum_{k \le K} SRD_k + c \sum_{k<K} CRD_k + d \sum_{k<K} CE_k

    Built from the abstract; the formulas, heads and weights are ours. Of the stages k = 1 .. K:

    - SCD, stage-wise channel distillation: :func:`channel_loss` of the student's stage, through a 1x1 conv, norm and
      ReLU to the teacher's width, and the teacher's; without the ReLU where that takes negative values [ours].
    - SRD, stage-wise response distillation: :func:`response_loss` of the student's response to the teacher's.
    - CRD, cross-stage review: :func:`review_loss`, the student's response to its own deeper one.
    - CE: cross-entropy of the auxiliary heads, the student's and the teacher's, whose features are constants.

    Tap the stages and, last, the output: ``tap=['backbone.layer1', ..., 'backbone.layer4', 'head.fc']``. Each stage but
    the last gets an auxiliary :class:`StageHead` on both sides; the last one's response is the output. The true classes
    come from mmpretrain's ``gt_label`` or mmseg's ``gt_sem_seg``. The heads belong to the term, so that no exported
    student has them.

    For a detector the levels of its shared dense head are the stages, whose responses there are already: with
    ``num_responses`` the last so many levels of the tap are responses, as many as stages before them, or without any
    (``tap='bbox_head.retina_cls', num_responses=5``); there are no auxiliary heads then, and no cross-entropy. Take
    ``activation='sigmoid'`` where the detector decides each class by itself. A level reviews the next coarser one,
    whose anchors answer for larger objects: whether that helps is not known, and ``review_weight=0`` leaves it out.

    The log shows the unweighted parts: ``ssr.channel``, ``ssr.response``, ``ssr.review``, ``ssr.auxiliary`` (0 where it
    has no weight).

    Args:
        student_channels, teacher_channels, signed: level by level; the distiller fills them in.
        channel_weight, response_weight, review_weight, auxiliary_weight: a, b, c and d.
        tau: temperature > 0 of all responses.
        activation: of the responses, ``'softmax'`` or ``'sigmoid'``; auxiliary heads need the former.
        review: ``'next'`` deeper stage, or ``'all'`` of them.
        num_responses: how many of the levels are responses: 1, or all, or half of them.
        head_channels: width of the auxiliary heads.
        norm_cfg: norm layer of the heads and the 1x1 convs (BN; SyncBN and GN work).
        ignore_index: value of ``gt_sem_seg`` that is left out.

    Raises:
        ValueError: an argument is out of its range, or the levels are no stages and responses of as many classes.
    """

    pyramid = True
    same_size = False
    on_logits = True
    ranks = (2, 4)
    wants_samples = True
    stats = ('ssr.channel', 'ssr.response', 'ssr.review', 'ssr.auxiliary')

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        signed: Sequence[bool],
        channel_weight: float = 1.0,
        response_weight: float = 1.0,
        review_weight: float = 0.5,
        auxiliary_weight: float = 1.0,
        tau: float = 4.0,
        activation: str = 'softmax',
        review: str = 'next',
        num_responses: int = 1,
        head_channels: int = 64,
        norm_cfg: Mapping | None = dict(type='BN'),
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        weights = dict(channel=channel_weight, response=response_weight, review=review_weight)
        weights['auxiliary'] = auxiliary_weight
        for key, value in weights.items():
            check_number(f'MTKDSSRLoss.{key}_weight', value)
        check_positive('MTKDSSRLoss.tau', tau)
        check_choice('MTKDSSRLoss.activation', activation, ACTIVATIONS)
        check_choice('MTKDSSRLoss.review', review, REVIEWS)
        check_integer('MTKDSSRLoss.num_responses', num_responses, 1)
        check_integer('MTKDSSRLoss.head_channels', head_channels, 1)
        check_integer('MTKDSSRLoss.ignore_index', ignore_index)
        stages = _count_stages(student_channels, teacher_channels, num_responses)
        heads = stages - 1 if num_responses == 1 else 0
        check_norm('MTKDSSRLoss.norm_cfg', norm_cfg, *teacher_channels[:stages], *([head_channels] if heads else []))
        if heads and activation != 'softmax':
            raise ValueError(
                "MTKDSSRLoss.activation: expected 'softmax', in which the auxiliary heads learn, or as many "
                f'num_responses as stages, {stages}, found {activation!r}'
            )
        if heads and response_weight > 0 and auxiliary_weight == 0:
            raise ValueError(
                "MTKDSSRLoss.auxiliary_weight: expected a number > 0, by which alone the teacher's auxiliary heads "
                f'learn, beside response_weight={response_weight}, found {auxiliary_weight}'
            )
        self.weights = list(weights.values())
        self.responding = dict(tau=tau, activation=activation)
        self.review = review
        self.num_stages = stages
        self.ignore_index = ignore_index
        self.fits = ModuleList(
            ConvModule(s, t, 1, norm_cfg=norm_cfg, act_cfg=None if below_zero else dict(type='ReLU'))
            for s, t, below_zero, _ in zip(student_channels, teacher_channels, signed, range(stages), strict=False)
        )
        self.student_heads, self.teacher_heads = (
            ModuleList(StageHead(c, channels[-1], head_channels, norm_cfg) for c in channels[:heads])
            for channels in (student_channels, teacher_channels)
        )

    @in_fp32
    def forward(self, student: list[Tensor], teacher: list[Tensor], samples: Sequence[Any] | None = None) -> LossResult:
        """The weighted sum of the four parts.

        Args:
            student, teacher: the stages (N, C, H, W) and the responses, (N, K) or (N, K, H, W).
            samples: N data samples, for the auxiliary heads.

        Raises:
            ValueError: a stage is no map, or the samples do not tell the classes.
        """
        ours, theirs = self.responses(student, self.student_heads), self.responses(teacher, self.teacher_heads)
        parts = [
            self._channels(student, teacher),
            sum(response_loss(s, t, **self.responding) for s, t in zip(ours, theirs, strict=True)),
            review_loss(ours, review=self.review, **self.responding),
            self._auxiliary(ours, theirs, samples),
        ]
        loss = sum(weight * part for weight, part in zip(self.weights, parts, strict=True))
        return LossResult(loss, {name: part.detach() for name, part in zip(self.stats, parts, strict=True)})

    def responses(self, levels: Sequence[Tensor], heads: Sequence[StageHead]) -> list[Tensor]:
        """Stage by stage: the auxiliary heads', and those that are levels themselves."""
        stages, given = levels[: self.num_stages], levels[self.num_stages :]
        check_stages(stages)
        dense = given[-1].dim() == 4
        return [*(head(stage, dense) for head, stage in zip(heads, stages, strict=False)), *given]

    def _channels(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        total = student[-1].new_zeros(())
        for fit, s, t in zip(self.fits, student, teacher, strict=False):
            total = total + channel_loss(fit(s), t)
        return total

    def _auxiliary(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], samples: Sequence[Any] | None) -> Tensor:
        total = ours[-1].new_zeros(())
        count = len(self.student_heads)
        if not self.weights[-1]:  # no sample need tell a class; DDP asks for a graph all the same
            return total + sum(p.sum() * 0.0 for p in self.teacher_heads.parameters())
        known: dict[torch.Size, Tensor] = {}
        for logits in (*ours[:count], *theirs[:count]):
            size = logits.shape[2:]
            if size not in known:
                known[size] = targets(samples, logits, self.ignore_index)
            total = total + cross_entropy(logits, known[size])
        return total


def _count_stages(student: Sequence[int], teacher: Sequence[int], num_responses: int) -> int:
    """How many of the levels stand before the responses.

    Raises:
        ValueError: they are not none, nor as many as the responses, beside more than one of these; or the responses
            differ in their channels.
    """
    stages = len(student) - num_responses
    if stages < 0 or (num_responses > 1 and stages not in (0, num_responses)) or len(student) == 1:
        raise ValueError(
            'MTKDSSRLoss.num_responses: expected 1, all, or half of the levels, at least two, found '
            f'{num_responses} of {len(student)}; tap the stages and, last, the output, as a list of paths'
        )
    widths = sorted({*student[stages:], *teacher[stages:]})
    if len(widths) > 1:
        raise ValueError(
            f'MTKDSSRLoss: expected responses of one number of classes, found {student[stages:]} of the student and '
            f'{teacher[stages:]} of the teacher; tap the output last'
        )
    return stages
