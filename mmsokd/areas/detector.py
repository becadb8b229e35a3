"""DAM: finds the areas that student and teacher both find interesting, and compares their features there."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from torch import Tensor
from torch.nn import functional as F

from mmsokd.areas.decode import area_weight, decode
from mmsokd.areas.head import AreaHead, AreaMaps, mix
from mmsokd.checks import check_bool, check_choice, check_integer, check_number, check_same_shape
from mmsokd.registry import MODELS
from mmsokd.scale import power_of


class AreaResult(NamedTuple):
    """One step's areas; losses are weighted and summed over the levels, everything else is detached."""

    weights: list[Tensor]  # level by level (N, 1, H, W), float32
    boxes: list[Tensor]  # level by level (N, k, 4), in cells
    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class Detection(NamedTuple):
    """One level's areas, for looking at."""

    heat: Tensor  # (N, K, H, W), what the boxes come from
    boxes: Tensor  # (N, k, 4), in cells
    scores: Tensor  # (N, k)
    student: Tensor  # (N, K, H, W), its own heatmap
    teacher: Tensor


@MODELS.register_module()
class DistinctiveAreaDetector(BaseModule):
    r"""Distinctive Area Detection Module, after SoKD (arXiv 2409.18785).

    One head reads both the adapted student ``Phi_s(F_s)`` and the refined teacher ``F~_t``. The agreement loss makes it
    say the same of both [a public review; authors' fork]:

    .. math:: L_D = \mathrm{MSE}([heat, size, offset](\Phi_s(F_s)), [heat, size, offset](\tilde F_t))

    and the area loss compares the features inside the boxes around its strongest peaks [a public review]:

    .. math:: L_{DA} = \sum_i \| M(A_i) (\Phi_s(F_s) - \tilde F_t) \|^2

    No ground truth is used. Constant heads would agree perfectly, so an anchor term pulls the teacher's heatmap to its
    feature's activation energy [ours], and ``heat_std`` and ``area_mean`` are there to be watched.

    Cost: on a 256-channel pyramid the three branches at full width make 3 * 9 * 256 * 256 = 1.8 M multiplications a
    cell and run on both networks: 3.5 M, beside the 6.5 M of RetinaNet's own head. The default of 64 channels makes it
    a quarter.

    Args:
        channels: the teacher's channels, level by level; the distiller fills them in. Levels of one width share a head.
        num_areas: boxes a level (the authors' fork: 8 on CIFAR); clamped to the cells of a small level.
        source: whose heatmap the boxes come from: ``'student'`` [authors' fork], ``'teacher'``, or ``'mutual'`` [ours].
        num_classes: channels of the heatmap (the authors' fork on CIFAR: the number of classes).
        feat_channels: width of the head; by default at most 64 on a pyramid and 256 on a single map [ours].
        agreement_weight, area_weight: lambda and beta_w. The authors' fork has 1000 each on CIFAR with
            ``normalization='all'``; ours is 1 with ``'area'``.
        anchor_weight: of the anchor term [ours]; 0 switches it off.
        overlap: cells under several boxes count once (``'union'``) [ours] or as often (``'sum'``) [authors' fork].
        normalization: mean over the masked cells (``'area'``) [ours], or the whole map (``'all'``) [authors' fork];
            ``'teacher'`` is as ``'area'``, relative to the mean square of the teacher's feature, level by level [ours].
        stop_teacher_grad: the head learns from the student's side only [ours].
        final_relu: see :class:`AreaHead`.

    Raises:
        ValueError: an option is not valid.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_areas: int = 16,
        source: str = 'mutual',
        num_classes: int = 1,
        feat_channels: int | None = None,
        agreement_weight: float = 1.0,
        area_weight: float = 1.0,
        anchor_weight: float = 0.1,
        overlap: str = 'union',
        normalization: str = 'area',
        stop_teacher_grad: bool = False,
        final_relu: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice('areas.source', source, ['student', 'teacher', 'mutual'])
        check_choice('areas.overlap', overlap, ['union', 'sum'])
        check_choice('areas.normalization', normalization, ['area', 'all', 'teacher'])
        check_integer('areas.num_areas', num_areas, 1)
        check_integer('areas.num_classes', num_classes, 1)
        if feat_channels is not None:
            check_integer('areas.feat_channels', feat_channels, 1)
        for key, value in (
            ('agreement_weight', agreement_weight),
            ('area_weight', area_weight),
            ('anchor_weight', anchor_weight),
        ):
            check_number(f'areas.{key}', value)
        for key, value in (('stop_teacher_grad', stop_teacher_grad), ('final_relu', final_relu)):
            check_bool(f'areas.{key}', value)
        self.num_areas = num_areas
        self.source = source
        self.loss_weights = dict(agreement=agreement_weight, area=area_weight, anchor=anchor_weight)
        self.overlap = overlap
        self.normalization = normalization
        self.stop_teacher_grad = stop_teacher_grad
        self.num_levels = len(channels)
        widest = 64 if len(channels) > 1 else 256
        shared = len(set(channels)) == 1
        self.heads = ModuleList(
            AreaHead(c, feat_channels or min(c, widest), num_classes, final_relu)
            for c in (channels[:1] if shared else channels)
        )
        self._clamped: set[int] = set()

    def _check(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        if not len(student) == len(teacher) == self.num_levels:
            raise ValueError(
                f'areas: expected {self.num_levels} levels, found {len(student)} of the student and {len(teacher)} of '
                'the teacher'
            )
        for s, t in zip(student, teacher, strict=True):
            check_same_shape(s, t)  # one channel or one cell would broadcast silently

    def _head(self, level: int) -> AreaHead:
        return self.heads[level if len(self.heads) > 1 else 0]

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> AreaResult:
        """The areas of a batch and their losses.

        Args:
            student: ``Phi_s(F_s)``, level by level (N, C, H, W).
            teacher: ``F~_t``, likewise. In the unrolled search it carries a graph to the policy; else none.

        Raises:
            ValueError: another number of levels than was built for, or a level's shapes differ.
        """
        self._check(student, teacher)
        weights, boxes = [], []
        sums = dict.fromkeys(self.loss_weights, student[0].new_zeros((), dtype=torch.float32))
        stats = []
        joined = [head.joined() for head in self.heads]
        for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
            ours, theirs = (self._head(level)(x, joined[level % len(joined)]) for x in (s, t))
            maps = mix(ours, theirs, self.source)
            found, scores = decode(*maps, self._clamp(level, maps.heat))
            weight = area_weight(found, scores, maps.heat.shape[-2:], self.overlap)
            weights.append(weight)
            boxes.append(found)
            stats.append(_stats(maps, found, scores, weight))
            sums['agreement'] = sums['agreement'] + self._agreement(ours, theirs)
            sums['area'] = sums['area'] + area_loss(s.float(), t.float(), weight, self.normalization)
            sums['anchor'] = sums['anchor'] + F.mse_loss(theirs.heat.amax(1, keepdim=True), activation_energy(t))
        losses = {f'loss_{name}': self.loss_weights[name] * value for name, value in sums.items()}
        return AreaResult(weights, boxes, losses, {k: torch.stack([x[k] for x in stats]).mean() for k in stats[0]})

    @torch.no_grad()
    def detect(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Detection]:
        """The areas alone, level by level."""
        found = []
        for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
            ours, theirs = self._head(level)(s), self._head(level)(t)
            maps = mix(ours, theirs, self.source)
            boxes, scores = decode(*maps, self._clamp(level, maps.heat))
            found.append(Detection(maps.heat, boxes, scores, ours.heat, theirs.heat))
        return found

    def _agreement(self, ours: AreaMaps, theirs: AreaMaps) -> Tensor:
        """L_D of one level: the mean squared difference over all five maps."""
        mine, other = torch.cat([*ours], 1), torch.cat([*theirs], 1)
        return F.mse_loss(mine, other.detach() if self.stop_teacher_grad else other)

    def _clamp(self, level: int, heat: Tensor) -> int:
        cells = heat.shape[-2] * heat.shape[-1]
        if cells < self.num_areas and level not in self._clamped:
            self._clamped.add(level)
            print_log(f'areas.num_areas: level {level} has {cells} cells; {cells} areas are taken there', 'current')
        return min(self.num_areas, cells)


def area_loss(student: Tensor, teacher: Tensor, weight: Tensor, normalization: str) -> Tensor:
    """L_DA of one level: the squared difference (N, C, H, W), weighted by (N, 1, H, W).

    ``'all'`` divides by N C H W [authors' fork]; ``'area'`` by C times the number of covered cells [ours], since the
    loss would otherwise fade as the map grows; ``'teacher'`` moreover by the teacher's mean square [ours], since it
    would otherwise be as large as the teacher's scale has it.
    """
    error = F.mse_loss(student, teacher, reduction='none').sum(1, keepdim=True)  # its backward is one pass
    squared = (error * weight).sum()
    if normalization == 'all':
        return squared / student.numel()
    mean = squared / ((weight > 0).sum() * student.shape[1]).clamp(min=1)
    return mean / power_of(teacher) if normalization == 'teacher' else mean


@torch.no_grad()
def activation_energy(feat: Tensor) -> Tensor:
    """Mean ``|F|`` over the channels, scaled to [0, 1] within each sample: (N, C, H, W) -> (N, 1, H, W), float32.

    Zero where a map is flat.
    """
    energy = feat.float().abs().mean(1, keepdim=True)
    low, high = energy.amin((2, 3), keepdim=True), energy.amax((2, 3), keepdim=True)
    return (energy - low) / (high - low).clamp(min=1e-6)


@torch.no_grad()
def _stats(maps: AreaMaps, boxes: Tensor, scores: Tensor, weight: Tensor) -> dict[str, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    real = (scores > 0).float()
    return dict(
        mask_cover=(weight > 0).float().mean(),
        heat_std=maps.heat.flatten(2).std(-1, unbiased=False).mean(),
        area_mean=(sides.prod(-1) * real).sum() / real.sum().clamp(min=1),
    )
