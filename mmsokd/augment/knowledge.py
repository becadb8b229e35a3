"""Meta-KD: a network that makes of the teacher's feature what helps the student most, by what its task loss says."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.augment.refining import FeatureRefiner
from mmsokd.checks import check_integer
from mmsokd.registry import MODELS

NAMES = ('reduce', 'reduce_bias', 'expand', 'expand_bias')


def refine_knowledge(
    feat: Tensor, student: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor
) -> Tensor:
    r"""The teacher's feature, changed in each position by what it, the student's and their correlation say [ours].

    .. math:: \tilde F = F + W_2 \, \mathrm{ReLU} \big( W_1 [F; S; \cos(F, S)] + b_1 \big) + b_2

    Args:
        feat: F, the teacher's (N, C, H, W).
        student: S, of its shape.
        reduce, reduce_bias: W_1 (D, 2 C + 1) and b_1 (D).
        expand, expand_bias: W_2 (C, D) and b_2 (C).

    Returns: (N, C, H, W).
    """
    seen = torch.cat([feat, student, F.cosine_similarity(feat, student, dim=1).unsqueeze(1)], 1)
    hidden = F.conv2d(seen, reduce[..., None, None], reduce_bias).relu()
    return feat + F.conv2d(hidden, expand[..., None, None], expand_bias)


@MODELS.register_module()
class KnowledgeRefiner(FeatureRefiner):
    """A network that refines a term's teacher feature, conditioned on the student's: :func:`refine_knowledge`.

    After "Learning Knowledge Representation with Meta Knowledge Distillation for Single Image Super-Resolution" (Zhu,
    Chen and Liu, arXiv:2207.08356), of which the abstract was read: knowledge representation networks transform the
    teacher's intermediate outputs, by the student's features and the correlation between both, and are optimised in a
    meta-learning manner, for what the student's own quality gains. The network is ours, and so is any use but
    super-resolution; the texture-aware kernels of that task are not there.

    Each term on features has its own, one network a level, of 1x1 convolutions. It starts as the identity. It is
    neither in the optimizer nor reached by the training's gradient: :class:`~mmsokd.hooks.MetaRefineHook`, without
    which it stays as it is, steps it. Its tensors are buffers, so that they are in the checkpoint; an exported student
    has none of them.

    Args:
        hidden: D, between both convolutions.

    Raises:
        ValueError: ``hidden`` is no positive integer.
    """

    per_term = True

    def __init__(self, hidden: int = 64, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        check_integer('refine.hidden', hidden, 1)
        self.hidden = hidden
        self.is_trained = False  # a hook says so
        self._held: list[Tensor] | None = None

    def connect(self, channels: Sequence[int]) -> None:
        """Build a network for each level."""
        for level, width in enumerate(channels):
            reduce = nn.Linear(2 * width + 1, self.hidden)  # its way of drawing weights
            values = reduce.weight, reduce.bias, torch.zeros(width, self.hidden), torch.zeros(width)
            for name, value in zip(NAMES, values, strict=True):
                self.register_buffer(f'{name}_{level}', value.detach().clone())

    def refine(self, feats: Sequence[Tensor], target: Sequence[Tensor], draw: Any) -> list[Tensor]:
        """See :class:`FeatureRefiner`; in float32 at least."""
        self._warn_if_idle()
        values = self._exposed or self.searched_tensors()
        given = [_wide(level) for level in target]
        if self.is_exposed:
            # The passes of one search see one student: what it is told is a constant for its gradient, also where its
            # weights are moved to find the second order.
            self._held = given = self._held or given
        with torch.set_grad_enabled(self.is_exposed), torch.autocast(feats[0].device.type, enabled=False):
            return [
                refine_knowledge(_wide(feat), student, *(values[f'{name}_{level}'] for name in NAMES))
                for level, (feat, student) in enumerate(zip(feats, given, strict=True))
            ]

    @contextmanager
    def exposed(self, device: torch.device | str = 'cpu') -> Iterator[dict[str, Tensor]]:
        """See :class:`FeatureRefiner`; inside, the student's feature is that of the first call."""
        try:
            with super().exposed(device) as leaves:
                yield leaves
        finally:
            self._held = None

    def searched_tensors(self) -> dict[str, Tensor]:
        """The weights of all levels."""
        return dict(self.named_buffers(recurse=False))

    def _warn_if_idle(self) -> None:
        if self.training and not self.is_trained:
            self.is_trained = True  # told once
            print_log(
                "refine: a KnowledgeRefiner that nobody trains stays the identity; give dict(type='mmsokd."
                "MetaRefineHook') in custom_hooks",
                'current',
                logging.WARNING,
            )


def _wide(feat: Tensor) -> Tensor:
    """Without its graph, in float32 at least."""
    return feat.detach().to(torch.promote_types(feat.dtype, torch.float32))
