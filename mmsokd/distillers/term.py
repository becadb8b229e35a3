"""One summand of the training loss: tap + adapter + loss + weight, built from one entry of the config's ``terms``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmsokd import losses
from mmsokd.checks import check_bool, nearest, telling
from mmsokd.distillers.adapting import (
    INFERRED,
    RANKS,
    Fit,
    PerLevel,
    are_maps,
    compared_channels,
    is_pyramid,
    picks_channels,
    shape_text,
)
from mmsokd.distillers.parts import build_part, part_class
from mmsokd.distillers.rehearsal import noise
from mmsokd.distillers.schedule import WeightSchedule
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureSpec, Tap, as_map, find_module, in_eval, match_levels, parse_tap, paths_of

_KEYS = ('tap', 'student_tap', 'teacher_tap', 'adapter', 'teacher', 'loss_weight', 'refine', 'areas')
STUDENT = 'student'  # as a term's `teacher`: the student itself, for self-distillation


class Term(BaseModule):
    """One summand of the training loss.

    The taps are resolved by the distiller, which calls :meth:`build` with what the dry runs saw.

    Args:
        name: its key in ``terms``; contains ``loss``, since MMEngine sums only such keys.
        cfg: ``type`` and the loss's own arguments; ``tap``, or ``student_tap`` and ``teacher_tap``, each a path or a
            list of paths; ``adapter``, ``teacher``, ``loss_weight``, ``refine``, ``areas``. While its weight is 0 a
            term is left out, with its areas; the weights of SoKD's own losses are in ``areas``, apart from it.
        teachers: the names of the distiller's teachers; a term names one where there are several.
        key: where the config has it, for messages; ``terms.<name>`` by default.
        keys: where it has a value of ``cfg`` that is not under that key, for messages.

    Raises:
        ValueError, TypeError: a key is missing, doubled or unknown; the message names it.
    """

    ranks: ClassVar[tuple[int, ...] | None] = None  # whatever the loss takes

    def __init__(
        self,
        name: str,
        cfg: Mapping[str, Any],
        teachers: Sequence[str],
        key: str | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        key = key or f'terms.{name}'
        if not isinstance(name, str) or 'loss' not in name:
            raise ValueError(f"{key}: expected a name that contains 'loss' (MMEngine sums only those), found {name!r}")
        if '.' in name:
            raise ValueError(f"{key}: expected a name without '.', found {name!r}")
        self._loss_cls = part_class(key, cfg, 'losses', more=_KEYS)
        self._check_stats(key)
        cfg = dict(cfg)
        self.key = key
        self._keys = keys or {}
        self.student_tap, self.teacher_tap = self._pop_taps(cfg)
        self.teacher_name = self._pop_teacher(cfg, teachers)
        self.weight = WeightSchedule(f'{key}.loss_weight', cfg.pop('loss_weight', 1.0))
        self.wants_refine = cfg.pop('refine', True)
        self.wants_areas = cfg.pop('areas', True)
        check_bool(f'{key}.refine', self.wants_refine)
        check_bool(f'{key}.areas', self.wants_areas)
        self.adapter_cfg = cfg.pop('adapter', INFERRED)
        self._loss_cfg = cfg

    def _check_stats(self, key: str) -> None:
        summed = [name for name in self.stats if 'loss' in name]
        if summed:
            raise ValueError(
                f"{key}.type: expected a loss whose stats have names without 'loss' (MMEngine would add them to the "
                f'training loss), found {summed} of {self._loss_cls.__name__}'
            )

    def _pop_taps(self, cfg: dict) -> tuple[Tap, Tap]:
        if 'tap' in cfg:
            if 'student_tap' in cfg or 'teacher_tap' in cfg:
                raise ValueError(f"{self.key}: expected 'tap', or 'student_tap' and 'teacher_tap', found both")
            self._keys = dict(student_tap=self.key_of('tap'), teacher_tap=self.key_of('tap'))
            return (self._pop_tap(cfg, 'tap'),) * 2
        if 'student_tap' not in cfg or 'teacher_tap' not in cfg:
            raise ValueError(f"{self.key}: expected 'tap', or 'student_tap' and 'teacher_tap', found {sorted(cfg)}")
        return self._pop_tap(cfg, 'student_tap'), self._pop_tap(cfg, 'teacher_tap')

    def _pop_tap(self, cfg: dict, name: str) -> Tap:
        key, tap = self.key_of(name), cfg.pop(name)
        paths = tuple(tap) if isinstance(tap, list | tuple) else (tap,)
        if not paths or not all(isinstance(path, str) for path in paths):
            raise ValueError(f'{key}: expected a path, or a list of paths, found {tap!r}')
        for path in paths:
            with telling(key, 'tap'):
                parse_tap(path)
        return tap if isinstance(tap, str) else paths

    def find_taps(self, models: Mapping[str, nn.Module]) -> None:
        """Look both taps up in the student and the teacher.

        Raises:
            UnknownTapError: one of them is not there; names its key, the model and the nearest paths.
        """
        sides = dict(student_tap=(STUDENT, self.student_tap), teacher_tap=(self.teacher_name, self.teacher_tap))
        for name, (model, tap) in sides.items():
            for path in paths_of(tap):
                with telling(f'{self.key_of(name)} in {model!r}', 'tap'):
                    find_module(models[model], parse_tap(path).module)

    def key_of(self, name: str) -> str:
        """Where the config has the value ``name`` of this term."""
        return self._keys.get(name, f'{self.key}.{name}')

    def _pop_teacher(self, cfg: dict, teachers: Sequence[str]) -> str:
        choices = [*teachers, STUDENT]
        name = cfg.pop('teacher', teachers[0] if len(teachers) == 1 else None)
        if not teachers and name != STUDENT:
            raise ValueError(f"teacher: expected the model that '{self.key}' learns from, found none, nor 'teachers'")
        if name not in choices:
            near = nearest(str(name), choices, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ''
            raise ValueError(f'{self.key}.teacher: expected one of {choices}, found {name!r}{hint}')
        return name

    def build(
        self,
        student: Sequence[FeatureSpec],
        teacher: Sequence[FeatureSpec],
        default_adapter: str | None = None,
        equal_channels: bool = False,
    ) -> None:
        """Match the levels and build one adapter a level.

        Args:
            student: what the dry run saw at the student's tap, level by level.
            teacher: likewise.
            default_adapter: registered adapter to take for maps where the config names none: SoKD's. Without one, a
                1x1 :class:`~mmsokd.adapters.ConvAdapter` is taken where equal channels are needed and they differ.
            equal_channels: a plug-in compares the features channel by channel, whatever the loss does.

        Raises:
            ValueError: the levels, channels or sizes cannot be brought together.
        """
        self.pairs = self._match(student, teacher)
        self.specs = [(student[i], teacher[j]) for i, j in self.pairs]
        self.equal_channels = (equal_channels and self.is_feature) or self._asks('same_channels')
        self._check_ranks()
        self.adapter = self._fit.build(default_adapter)
        self.losses = ModuleList(self._build_losses())

    def _match(self, student: Sequence[FeatureSpec], teacher: Sequence[FeatureSpec]) -> list[tuple[int, int]]:
        """Levels of one stride; or one after the other, where strides need not agree."""
        pairs = match_levels(student, teacher)
        if pairs is not None:
            return pairs
        any_size = self._resizes or self._is_fused or not self._asks('same_size')
        if any_size and len(student) == len(teacher):
            return [(i, i) for i in range(len(student))]
        strides = [s.stride for s in student], [t.stride for t in teacher]
        both = [stride for stride in strides[0] if stride in strides[1]]
        if both:
            mend = f'tap those of strides {both} alone, which both have'
            first, last = strides[0].index(both[0]), strides[0].index(both[-1])
            if str(self.student_tap)[-1] not in '])' and both == strides[0][first : last + 1]:
                mend += f" (student_tap='{self.student_tap}[{first or ''}:{last + 1}]')"
        else:
            mend = f'tap as many levels on both sides and give {self.resize_by}'
        raise ValueError(
            f'{self.key}: expected each student level to have a teacher level of its stride, found strides '
            f'{strides[0]} at {self.student_tap!r} of the student and {strides[1]} at {self.teacher_tap!r} of the '
            f'teacher; {mend}, or write one term a level'
        )

    def _asks(self, what: str) -> Any:
        """A class attribute of the loss, which need not know of :class:`~mmsokd.losses.TermLoss`."""
        return getattr(self._loss_cls, what, getattr(losses.TermLoss, what))

    @property
    def is_feature(self) -> bool:
        """Whether the term compares feature maps (N, C, H, W), on which SoKD's plug-ins act."""
        return are_maps(self.specs) and not self._asks('on_logits')

    @property
    def _resizes(self) -> bool:
        """Whether the config says how maps of unequal size are brought together."""
        return isinstance(self.adapter_cfg, Mapping) and self.adapter_cfg.get('resize') is not None

    @property
    def _is_fused(self) -> bool:
        """Whether one adapter takes all levels at once, and gives each in its teacher's size."""
        cfg = self.adapter_cfg
        if cfg == INFERRED:
            name = self._asks('default_adapter')
            return name is not None and is_pyramid(MODELS.get(name))
        return cfg is not None and is_pyramid(part_class(self.key_of('adapter'), cfg, 'adapters'))

    @property
    def _where(self) -> str:
        return f'{self.student_tap!r} of the student and {self.teacher_tap!r} of the teacher'

    def _check_ranks(self) -> None:
        """Maps with maps, vectors with vectors; and what the loss takes."""
        ranks = self.ranks or self._asks('ranks')
        wants_alike = self.equal_channels or self._asks('same_size') or self._resizes
        for s, t in self.specs:
            found = len(s.size) + 2, len(t.size) + 2
            if not set(found) <= set(ranks) or (wants_alike and found[0] != found[1]):
                expected = ' or '.join(RANKS[rank] for rank in ranks)
                alike = ', of one kind' if wants_alike and len(ranks) > 1 else ''
                raise ValueError(
                    f'{self.key}: expected {expected}{alike}, found {shape_text(s)} and {shape_text(t)} at '
                    f'{self._where}; tap '
                    'a layer that gives a map, such as a stage of the backbone before its pooling, or, for a '
                    "transformer, a layer of the backbone whose tokens 'probe_size' divides into a grid"
                )

    @property
    def channels(self) -> list[int]:
        """In how many channels the teacher is compared, level by level."""
        return [teacher for _, teacher in self._compared]

    @property
    def _compared(self) -> list[tuple[int, int]]:
        """How many channels of the adapted student and of the teacher are compared, level by level."""
        adapters = self.adapter if isinstance(self.adapter, PerLevel) else [self.adapter] * len(self.specs)
        return [compared_channels(adapter, s, t) for adapter, (s, t) in zip(adapters, self.specs, strict=True)]

    @property
    def matches(self) -> bool:
        """Whether :meth:`match` changes the teacher's feature: it is then this term's own."""
        return isinstance(self.adapter, PerLevel) and any(picks_channels(adapter) for adapter in self.adapter)

    @property
    def _fit(self) -> Fit:
        return Fit(
            key=self.key,
            adapter_key=self.key_of('adapter'),
            where=self._where,
            resize_by=self.resize_by,
            cfg=self.adapter_cfg,
            specs=self.specs,
            own=self._asks('default_adapter'),
            on_logits=self._asks('on_logits'),
            equal_channels=self.equal_channels,
            equal_sizes=self._asks('same_size') or self.equal_channels,
        )

    def _build_losses(self) -> list[nn.Module]:
        """One a level, or one for the pyramid where its class says so."""
        found = [(*channels, t.signed) for channels, (_, t) in zip(self._compared, self.specs, strict=True)]
        if self._asks('pyramid'):
            found = [tuple(map(list, zip(*found, strict=True)))]
        names = ('student_channels', 'teacher_channels', 'signed')
        return [
            build_part(self.key, self._loss_cfg, 'losses', **dict(zip(names, values, strict=True))) for values in found
        ]

    @property
    def stats(self) -> tuple[str, ...]:
        """The names of what the loss tells of itself."""
        return self._asks('stats')

    @property
    def is_on_logits(self) -> bool:
        """Whether the loss compares predictions, which SoKD's plug-ins leave alone."""
        return self._asks('on_logits')

    @property
    def resize_by(self) -> str:
        """What the config says to bring maps of unequal size together, for messages."""
        kind = 'ResizeAdapter' if self._asks('on_logits') else 'ConvAdapter'
        return f"adapter=dict(type='mmsokd.{kind}', resize='bilinear')"

    def select(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The matched levels of both sides, tokens as maps; ``size`` is that of the batch's pictures."""
        students, teachers = [], []
        for (i, j), (s, t) in zip(self.pairs, self.specs, strict=True):
            students.append(as_map(_last_queries(student[i], s, teacher[j], t), s, size))
            teachers.append(as_map(teacher[j], t, size))
        return students, teachers

    def adapt(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """``Phi_s(F_s)``, level by level, in the teacher's width and size."""
        return self.adapter(student, [t.shape[-2:] for t in teacher])

    def match(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's levels as the adapter leaves them: as they are, or in the channels of the adapted student."""
        return self.adapter.match(student, teacher) if self.matches else list(teacher)

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        samples: list | None = None,
    ) -> Tensor:
        """The loss that :meth:`compare` gives, alone."""
        return self.compare(student, teacher, weights, samples).loss

    def compare(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        samples: list | None = None,
    ) -> losses.LossResult:
        """The unweighted loss of adapted features, in fp32: the sum over the levels, as if each were a term.

        What the loss tells of itself is averaged over the levels that have it, those where it is not NaN.

        Args:
            student, teacher: level by level.
            weights: SoKD's area masks (N, 1, H, W), for losses that compare position by position.
            samples: the batch's data samples, for losses that look at the ground truth.
        """
        more: dict[str, Any] = dict(samples=samples) if self._asks('wants_samples') else {}
        masks = weights if weights is not None and self._asks('per_position') else [None] * len(student)
        levels = list(zip(student, teacher, masks, strict=True))
        if self._asks('pyramid'):
            levels = [tuple(map(list, zip(*levels, strict=True)))]
        total = student[0].new_zeros((), dtype=torch.float32)
        told: list[Mapping[str, Tensor]] = []
        for loss, (s, t, mask) in zip(self.losses, levels, strict=False):  # there are none without `keep_host`
            found = _compare(loss, s, t, **more, **(dict(weight=mask) if masks is weights else {}))
            if self.stats:
                found, stats = found
                told.append(stats)
            total = total + found
        return losses.LossResult(total, mean_stats(self.stats, told))

    @torch.no_grad()
    def rehearse(self, samples: list | None) -> None:
        """Run once on noise of the shapes that the dry runs saw: what cannot run fails when the model is built.

        Args:
            samples: as the student's task has them. A loss that looks at them is left out where they are not known,
                and where it is not mmsokd's own, so that nobody knows what it looks for; its adapter is not.

        Raises:
            ValueError: the loss is no finite number.
            Exception: what the adapter or the loss raises; its message begins with the term's key.
        """
        with telling(self.key), in_eval(self), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            device = next((p.device for p in self.parameters()), None)
            sides = [[noise(spec).to(device) for spec in side] for side in zip(*self.specs, strict=True)]
            adapted = self.adapt(*sides)
            ours = all(type(loss).__module__.startswith('mmsokd.') for loss in self.losses)
            if self._asks('wants_samples') and (samples is None or not ours):
                return
            value = self(adapted, self.match(adapted, sides[1]), samples=samples)
            found = value.item() if value.numel() == 1 else f'the shape {tuple(value.shape)}'
            if not isinstance(found, float) or not math.isfinite(found):
                raise ValueError(
                    f"expected a loss of one finite number, found {found} for noise of the tapped features' shapes; "
                    "are the loss's arguments within reason?"
                )

    def untouched(self) -> Tensor | float:
        """Zero, with a graph to every parameter: keeps DDP content in a step that leaves the term out."""
        return sum(p.sum() * 0.0 for p in self.parameters() if p.requires_grad)


def mean_stats(names: Sequence[str], told: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each of ``names`` over those of ``told`` that have it, where it is not NaN."""
    found = {name: [stats[name].detach() for stats in told if name in stats] for name in names}
    return {name: torch.stack(values).nanmean() for name, values in found.items() if values}


@losses.in_fp32
def _compare(loss: nn.Module, student: Tensor, teacher: Tensor, **more: Any) -> Tensor | losses.LossResult:
    return loss(student, teacher, **more)  # which need not be one of ours


def _last_queries(student: Tensor, s: FeatureSpec, teacher: Tensor, t: FeatureSpec) -> Tensor:
    """The student's queries (N, L, C) that the teacher has too: a DINO in training puts its denoising ones first."""
    more = s.size == t.size and len(s.size) == 1 and student.shape[1] > teacher.shape[1]
    return student[:, -teacher.shape[1] :] if more else student
