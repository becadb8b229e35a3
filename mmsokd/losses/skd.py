"""SKD: the teacher's predictions are softened and simplified for the student before it learns them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsokd.checks import check_choice, check_integer, check_number, check_positive
from mmsokd.losses.base import LossResult, TermLoss, in_fp32
from mmsokd.losses.logits import anchors_of, check_logits, divergence
from mmsokd.losses.targets import anchor_targets, labelled_mean
from mmsokd.registry import MODELS

RESIDUALS = ('logits', 'probabilities')


@in_fp32
def skd_loss(student: Tensor, log_target: Tensor, labels: Tensor, anchor: float = 1.0, tau: float = 4.0) -> Tensor:
    r"""Divergence from a learned target, and the target's own cross-entropy (after Yuan et al., arXiv:2305.10893).

    .. math:: \tau^2\, \mathrm{KL}(q \,\|\, \mathrm{softmax}(s / \tau)) - \gamma \log q_y

    The second summand anchors the target [ours, after PESF-KD, arXiv:2205.15308]: what makes ``q`` would else learn by
    the divergence alone, whose least value is at ``q`` equal to the student.

    Args:
        student: logits (T, K).
        log_target: ``log q`` (T, K).
        labels: the true classes (T), int64; what is below 0 is left out.
        anchor: gamma.
        tau: temperature.

    Returns: scalar >= 0, the mean over what is not left out; zero if nothing is left.
    """
    fit = divergence(log_target, (student / tau).log_softmax(1))
    true = -log_target.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return labelled_mean(tau**2 * fit + anchor * true, labels)


@MODELS.register_module()
class StudentFriendlyKDLoss(TermLoss):
    r"""After SKD (Yuan et al., Knowledge-Based Systems 296, 2024, arXiv:2305.10893): :func:`skd_loss` to a target ``q``
    that a :class:`~mmsokd.adapters.LearningSimplifier` makes of the teacher's softened predictions.

    .. math:: u = \mathrm{softmax}(t / \tau_s), \quad q = \mathrm{softmax}\big((r + \mathrm{simplifier}(u)) / \tau\big)

    From the abstract: softening, then a simplifier with attention that is trained with the student by the distillation
    loss. The formulas are ours. ``r`` is ``tau log u`` (the teacher's logits, where both temperatures are one), so that
    ``q`` is ``u`` without the simplifier and the loss is KD's; or ``u`` itself with ``residual='probabilities'``, whose
    softmax at ``tau`` is nearly uniform: no class has more than ``exp(1 / tau)`` times the probability of another until
    the simplifier has learned otherwise.

    Give the simplifier a learning rate of its own, 1e-3 of the student's as in PESF-KD (arXiv:2205.15308)::

        optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))

    The log shows, over the tokens, ``skd.kl_soft_target``, KL(u || q): how far the target has left the teacher; and
    ``skd.kl_target_student``, KL(q || student) without the factor tau^2. The target collapses to the student where the
    first rises and the second vanishes.

    What is a token [ours]: a picture of (N, K), which has mmpretrain's ``gt_label``; a position of a segmentor's
    (N, K, H, W) that has a class in ``gt_sem_seg``; an anchor of a detector's (N, A K, H, W) where a ground-truth box
    touches its cell, whose class is that of the smallest such box. The detector's assigner is not asked, and each level
    is a batch of tokens of its own. Their probabilities are a softmax over the K classes, also where the detector
    decides them one by one. A two-stage head has one row a proposal and cannot be tapped.

    Args:
        teacher_channels: the distiller fills them in.
        tau: temperature of the student and the target, > 0.
        softening: ``tau_s``, > 0.
        anchor: gamma, relative to the divergence; the term's ``loss_weight`` scales both.
        residual: ``'logits'`` or ``'probabilities'``.
        over, embed_dims, num_heads: of the simplifier.
        num_classes: K; the channels by default. A detector's config gives it, since its channels do not tell it from
            the anchors of a position.
        max_tokens: of more positions (or anchors) as many are drawn anew in each step: attention holds ``num_heads``
            times their square.
        ignore_index: value of ``gt_sem_seg`` that is left out.

    Raises:
        ValueError: an argument is none of these, or ``num_classes`` does not divide the channels.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)
    wants_samples = True
    stats = ('skd.kl_soft_target', 'skd.kl_target_student')

    def __init__(
        self,
        teacher_channels: int,
        tau: float = 4.0,
        softening: float = 4.0,
        anchor: float = 1.0,
        residual: str = 'logits',
        over: str = 'samples',
        embed_dims: int = 64,
        num_heads: int = 4,
        num_classes: int | None = None,
        max_tokens: int = 2048,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_positive('StudentFriendlyKDLoss.tau', tau)
        check_positive('StudentFriendlyKDLoss.softening', softening)
        check_number('StudentFriendlyKDLoss.anchor', anchor)
        check_choice('StudentFriendlyKDLoss.residual', residual, RESIDUALS)
        check_integer('StudentFriendlyKDLoss.ignore_index', ignore_index)
        self.num_classes = teacher_channels if num_classes is None else num_classes
        anchors = anchors_of('StudentFriendlyKDLoss', teacher_channels, self.num_classes)
        check_integer('StudentFriendlyKDLoss.max_tokens', max_tokens, anchors)
        self.max_positions = max_tokens // anchors
        self.tau = tau
        self.softening = softening
        self.anchor = anchor
        self.residual = residual
        self.ignore_index = ignore_index
        self._given_classes = num_classes
        # by its name: a loss imports no adapter
        cfg = dict(num_classes=self.num_classes, over=over, embed_dims=embed_dims, num_heads=num_heads)
        self.simplifier = MODELS.build(dict(type='mmsokd.LearningSimplifier', **cfg))

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence[Any] | None = None) -> LossResult:
        """The loss of one level; zero where it has no token.

        Args:
            student, teacher: (N, K) or (N, A K, H, W).
            samples: N data samples.

        Raises:
            ValueError: they are no logits of one shape, the samples do not tell the classes, or they are a detector's
                and ``num_classes`` was not given.
        """
        check_logits(student, teacher)
        with torch.no_grad():
            labels = anchor_targets(samples, teacher, self._given_classes, self.ignore_index)
            chosen = self._draw(labels)
        labels = labels.flatten()[chosen].repeat_interleave(teacher.shape[1] // self.num_classes)
        student, teacher = (self._tokens(x, chosen) for x in (student, teacher))
        soft, target = self.simplify(teacher, labels >= 0)
        return LossResult(
            skd_loss(student, target, labels, self.anchor, self.tau),
            dict(zip(self.stats, self._distances(student, soft, target, labels), strict=True)),
        )

    def simplify(self, teacher: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``log u`` and ``log q`` of a teacher's logits (T, K), of which ``valid`` (T,) ones count."""
        soft = (teacher / self.softening).log_softmax(1)
        change = self.simplifier(soft.exp(), valid) / self.tau
        start = soft if self.residual == 'logits' else soft.exp() / self.tau
        return soft, (start + change).log_softmax(1)

    def _draw(self, labels: Tensor) -> Tensor:
        """Which positions to take, of those with a class first: indices into the flat labels, never more than fit.

        Their number depends on the shape alone, so that no step waits for the device.
        """
        labels = labels.flatten()
        if len(labels) <= self.max_positions:
            return torch.arange(len(labels), device=labels.device)
        order = torch.rand(len(labels), device=labels.device) + (labels >= 0)
        return order.topk(self.max_positions).indices

    def _tokens(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """The chosen positions' predictions: (N, K) or (N, A K, H, W) -> (T A, K)."""
        maps = logits.flatten(2) if logits.dim() == 4 else logits[..., None]  # (N, A K, H W)
        rows = maps[chosen // maps.shape[2], :, chosen % maps.shape[2]]  # (T, A K)
        return rows.reshape(-1, self.num_classes)

    @torch.no_grad()
    def _distances(self, student: Tensor, soft: Tensor, target: Tensor, labels: Tensor) -> list[Tensor]:
        """Of the softened teacher from the target, and of that from the student; NaN without a token."""
        counts = labels >= 0
        pairs = (soft, target), (target, (student / self.tau).log_softmax(1))
        return [(divergence(*pair) * counts).sum() / counts.sum() for pair in pairs]
