"""What stands in a distiller's ``refine``: it makes of the teacher's feature what the student is to learn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import functional as F


class FeatureRefiner(BaseModule):
    """Base of what refines the teacher's feature. It has tensors that a hook searches, and no parameters.

    Attributes:
        at, student_at, resize, teacher: as of :class:`~mmsokd.augment.FeatureAugmentationNeck`; None where the feature
            is refined beside the teacher's forward alone.
        per_term: each term has one of its own.
        searching: whether the training forward itself gives the search its gradient.
    """

    at: str | None = None
    student_at: str | None = None
    resize: str | None = None
    teacher: str | None = None
    per_term: bool = False
    searching: bool = False

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self._exposed: dict[str, Tensor] | None = None

    def connect(self, channels: Sequence[int]) -> None:
        """Build what depends on the widths of a term's levels, if each has one of its own; nothing by default."""

    def sample(self, batch_size: int, device: torch.device | str = 'cpu') -> Any:
        """What :meth:`refine` draws for one step; nothing by default."""
        return None

    def refine(self, feats: Sequence[Tensor], target: Sequence[Tensor], draw: Any) -> list[Tensor]:
        """``F~_t``, level by level; with a graph to the searched tensors where they are exposed.

        Args:
            feats: the teacher's levels (N, C, H, W).
            target: the student's, in their widths and sizes.
            draw: what :meth:`sample` gave.
        """
        raise NotImplementedError

    def searched_tensors(self) -> dict[str, Tensor]:
        """The live tensors that a gradient is asked for."""
        raise NotImplementedError

    @property
    def is_exposed(self) -> bool:
        """Whether :meth:`exposed` is active: the caller wants the graph to what is searched in its own losses."""
        return self._exposed is not None

    @contextmanager
    def exposed(self, device: torch.device | str = 'cpu') -> Iterator[dict[str, Tensor]]:
        """Let what is refined inside carry a graph to the yielded leaves."""
        self._exposed = {
            n: v.detach().to(device, non_blocking=True).clone().requires_grad_()
            for n, v in self.searched_tensors().items()
        }
        try:
            yield self._exposed
        finally:
            self._exposed = None

    @staticmethod
    def objective(refined: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """``L_aug``: half the mean squared error to the detached target, in float32, averaged over the levels."""
        pairs = zip(refined, target, strict=True)
        return 0.5 * torch.stack([F.mse_loss(r.float(), t.detach().float()) for r, t in pairs]).mean()

    @staticmethod
    @torch.no_grad()
    def norm_ratio(refined: Sequence[Tensor], original: Sequence[Tensor]) -> Tensor:
        """``|F~_t| / |F_t|`` over all levels: L_aug alone would be glad of a blank feature."""
        ours, theirs = (
            torch.stack([torch.linalg.vector_norm(x.float()) for x in side]).square().sum()
            for side in (refined, original)
        )
        return (ours / theirs.clamp(min=1e-12)).sqrt()
