"""One summand of the training loss: tap + adapter + loss + weight, built from one entry of the config's ``terms``."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmsokd import losses
from mmsokd.adapters import LinearAdapter
from mmsokd.checks import check_bool, nearest
from mmsokd.distillers.parts import build_part, part_class
from mmsokd.distillers.schedule import WeightSchedule
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureSpec, Tap, as_map, match_levels

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

    Raises:
        ValueError, TypeError: a key is missing, doubled or unknown; the message names it.
    """

    maps_only: ClassVar[bool] = False  # whatever the loss does

    def __init__(self, name: str, cfg: Mapping[str, Any], teachers: Sequence[str], key: str | None = None) -> None:
        super().__init__()
        key = key or f'terms.{name}'
        if 'loss' not in name:
            raise ValueError(f"{key}: expected a name that contains 'loss' (MMEngine sums only those), found {name!r}")
        if '.' in name:
            raise ValueError(f"{key}: expected a name without '.', found {name!r}")
        self._loss_cls = part_class(key, cfg, more=_KEYS)
        if self._loss_cls.__module__.startswith('mmsokd.') and not issubclass(self._loss_cls, losses.TermLoss):
            raise ValueError(f'{key}.type: expected a loss, found {cfg["type"]!r}')
        cfg = dict(cfg)
        self.key = key
        self.student_tap, self.teacher_tap = self._pop_taps(cfg)
        self.teacher_name = self._pop_teacher(cfg, teachers)
        self.weight = WeightSchedule(f'{key}.loss_weight', cfg.pop('loss_weight', 1.0))
        self.wants_refine = cfg.pop('refine', True)
        self.wants_areas = cfg.pop('areas', True)
        check_bool(f'{key}.refine', self.wants_refine)
        check_bool(f'{key}.areas', self.wants_areas)
        self.adapter_cfg = cfg.pop('adapter', 'inferred')
        self._loss_cfg = cfg

    def _pop_taps(self, cfg: dict) -> tuple[Tap, Tap]:
        if 'tap' in cfg:
            if 'student_tap' in cfg or 'teacher_tap' in cfg:
                raise ValueError(f"{self.key}: expected 'tap', or 'student_tap' and 'teacher_tap', found both")
            return (self._pop_tap(cfg, 'tap'),) * 2
        if 'student_tap' not in cfg or 'teacher_tap' not in cfg:
            raise ValueError(f"{self.key}: expected 'tap', or 'student_tap' and 'teacher_tap', found {sorted(cfg)}")
        return self._pop_tap(cfg, 'student_tap'), self._pop_tap(cfg, 'teacher_tap')

    def _pop_tap(self, cfg: dict, key: str) -> Tap:
        tap = cfg.pop(key)
        if not isinstance(tap, list | tuple):
            return tap
        if not tap or not all(isinstance(path, str) for path in tap):
            raise ValueError(f'{self.key}.{key}: expected a path, or a list of paths, found {tap!r}')
        return tuple(tap)

    def _pop_teacher(self, cfg: dict, teachers: Sequence[str]) -> str:
        choices = [*teachers, STUDENT]
        name = cfg.pop('teacher', teachers[0] if len(teachers) == 1 else None)
        if name is None and not teachers:
            raise ValueError(f"teacher: expected the model that '{self.key}' learns from, found none")
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
        pairs = match_levels(student, teacher)
        if pairs is None and self._resizes and len(student) == len(teacher):
            pairs = [(i, i) for i in range(len(student))]
        if pairs is None:
            raise ValueError(
                f'{self.key}: expected each student level to have a teacher level of its stride, found strides '
                f'{[s.stride for s in student]} at {self.student_tap!r} of the student and '
                f'{[t.stride for t in teacher]} at {self.teacher_tap!r} of the teacher; tap as many levels on both '
                f'sides and give {self.resize_by}, or write one term a level'
            )
        self.pairs = pairs
        self.specs = [(student[i], teacher[j]) for i, j in pairs]
        self.equal_channels = (equal_channels and self.is_feature) or self._asks('same_channels')
        self._check_ranks()
        self.adapter = self._build_adapter(self._asks('default_adapter') or default_adapter)
        adapters = self.adapter if isinstance(self.adapter, PerLevel) else [self.adapter] * len(pairs)
        self.losses = ModuleList(self._build_loss(s, t, a) for (s, t), a in zip(self.specs, adapters, strict=True))

    def _asks(self, what: str) -> Any:
        """A class attribute of the loss, which need not know of :class:`~mmsokd.losses.TermLoss`."""
        return getattr(self._loss_cls, what, getattr(losses.TermLoss, what))

    @property
    def is_feature(self) -> bool:
        """Whether the term compares feature maps (N, C, H, W), on which SoKD's plug-ins act."""
        return self._are_maps and not self._asks('on_logits')

    @property
    def _are_maps(self) -> bool:
        return all(len(s.size) == len(t.size) == 2 for s, t in self.specs)

    @property
    def _resizes(self) -> bool:
        """Whether the config says how maps of unequal size are brought together."""
        return isinstance(self.adapter_cfg, Mapping) and self.adapter_cfg.get('resize') is not None

    @property
    def _where(self) -> str:
        return f'{self.student_tap!r} of the student and {self.teacher_tap!r} of the teacher'

    def _check_ranks(self) -> None:
        """Maps with maps, vectors with vectors; maps alone where the loss needs them."""
        wants_maps = self.maps_only or getattr(self._loss_cls, 'maps_only', False)
        wants_alike = self.equal_channels or self._asks('same_size') or self._resizes
        for s, t in self.specs:
            if (wants_maps and not len(s.size) == len(t.size) == 2) or (wants_alike and len(s.size) != len(t.size)):
                expected = 'maps (N, C, H, W)' if wants_maps else 'two maps, or two vectors or rows of tokens'
                raise ValueError(
                    f'{self.key}: expected {expected}, found {_shape(s)} and {_shape(t)} at {self._where}; tap a layer '
                    'that gives a map, such as a stage of the backbone before its pooling, or, for a transformer, a '
                    "layer of the backbone whose tokens 'probe_size' divides into a grid"
                )

    @property
    def channels(self) -> list[int]:
        """The teacher's channels, level by level."""
        return [t.channels for _, t in self.specs]

    def _build_adapter(self, default: str | None) -> nn.Module:
        """One adapter a level, or one for the whole pyramid where its class says so."""
        cfg = self.adapter_cfg
        key = f'{self.key}.adapter'
        if cfg == 'inferred' and default is not None and _is_pyramid(MODELS.get(default)):
            cfg = dict(type=default)
        if cfg not in (None, 'inferred'):
            cls = part_class(key, cfg)
            self._check_kind(cls)
            if _is_pyramid(cls):
                students, teachers = zip(*self.specs, strict=True)
                widths = [s.channels for s in students], [t.channels for t in teachers]
                return build_part(key, cfg, in_channels=widths[0], out_channels=widths[1])
        adapters = PerLevel(self._build_level_adapter(cfg, default, s, t) for s, t in self.specs)
        for adapter, (s, t) in zip(adapters, self.specs, strict=True):
            self._check_fit(adapter, s, t)
        return adapters

    def _build_level_adapter(self, cfg: Any, default: str | None, s: FeatureSpec, t: FeatureSpec) -> nn.Module:
        if cfg == 'inferred':
            cfg = self._inferred_adapter(default, s, t)
        if cfg is None:
            return nn.Identity()
        key = f'{self.key}.adapter'
        ratio = t.size[0] / s.size[0] if cfg.get('resize') == 'conv' else 1.0
        found = dict(in_channels=s.channels, out_channels=t.channels, stride_ratio=ratio)
        if 'signed' in inspect.signature(part_class(key, cfg)).parameters:
            found['signed'] = t.signed
        return build_part(key, cfg, **found)

    def _inferred_adapter(self, default: str | None, s: FeatureSpec, t: FeatureSpec) -> dict | None:
        """The loss's own, SoKD's, a linear one where the channels have to agree and do not, or none."""
        own = self._asks('default_adapter')
        if self.is_feature and own is not None:
            return dict(type=own)
        if self.is_feature and default is not None:
            return dict(type=default, **self._dense_options(t))
        if s.channels != t.channels and self.equal_channels and not self._asks('on_logits'):
            return dict(type=f'mmsokd.{self._plain_adapter}')
        return None

    def _build_loss(self, s: FeatureSpec, t: FeatureSpec, adapter: nn.Module) -> nn.Module:
        channels = s.channels if _keeps_channels(adapter) else t.channels
        return build_part(self.key, self._loss_cfg, student_channels=channels, teacher_channels=t.channels)

    def _dense_options(self, t: FeatureSpec) -> dict:
        """SoKD's three-conv adapter at a width and with a norm that suit the map [ours].

        The authors' CIFAR code has one map and a BN at full width. On a pyramid that would cost as much as a
        detection head, and a level of one cell with a batch of one has no batch statistics.
        """
        pyramid = len(self.pairs) > 1
        width = min(t.channels, 64 if pyramid else 256)
        groups = next(g for g in (16, 8, 4, 2, 1) if width % g == 0 and t.channels % g == 0)
        norm = dict(type='GN', num_groups=groups) if pyramid else dict(type='BN')
        return dict(feat_channels=width, norm_cfg=norm)

    @property
    def _plain_adapter(self) -> str:
        return 'ConvAdapter' if self._are_maps else 'LinearAdapter'

    def _check_kind(self, cls: type) -> None:
        """An adapter that resizes, or fuses levels, is made for maps, a linear one for anything else."""
        on_maps = 'resize' in inspect.signature(cls).parameters or _is_pyramid(cls)
        if issubclass(cls, LinearAdapter) if self._are_maps else on_maps:
            found = ', '.join(f'{_shape(s)} and {_shape(t)}' for s, t in self.specs)
            raise ValueError(
                f"{self.key}.adapter: expected none, or dict(type='mmsokd.{self._plain_adapter}'), for {found} at "
                f'{self._where}, found {cls.__name__}'
            )

    def _check_fit(self, adapter: nn.Module, s: FeatureSpec, t: FeatureSpec) -> None:
        if _keeps_channels(adapter) and s.channels != t.channels and self.equal_channels:
            mend = f"leave 'adapter' out, or give dict(type='mmsokd.{self._plain_adapter}')"
            if self._asks('on_logits'):
                mend = 'logits are compared class by class: are both models made for the same classes?'
            raise ValueError(
                f'{self.key}.adapter: expected equal channels without an adapter, found {s.channels} and '
                f'{t.channels} at {self._where}; {mend}'
            )
        fits = s.size == t.size or not (self._asks('same_size') or self.equal_channels)
        if not fits and getattr(adapter, 'resize', None) is None:
            mend = f'give {self.resize_by}, or tap another layer' if self._are_maps else 'tap another layer'
            raise ValueError(
                f'{self.key}: expected equal sizes, found {s.size} (stride {s.stride}) and {t.size} '
                f'(stride {t.stride}) at {self._where}; {mend}'
            )

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

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        samples: list | None = None,
    ) -> Tensor:
        """The unweighted loss of adapted features, in fp32: the sum over the levels, as if each were a term.

        Args:
            student, teacher: level by level.
            weights: SoKD's area masks (N, 1, H, W), for losses that compare position by position.
            samples: the batch's data samples, for losses that look at the ground truth.
        """
        total = student[0].new_zeros((), dtype=torch.float32)
        more: dict[str, Any] = dict(samples=samples) if self._asks('wants_samples') else {}
        for i, loss in enumerate(self.losses):
            if weights is not None and self._asks('per_position'):
                more['weight'] = weights[i]
            total = total + _compare(loss, student[i], teacher[i], **more)
        return total

    def untouched(self) -> Tensor | float:
        """Zero, with a graph to every parameter: keeps DDP content in a step that leaves the term out."""
        return sum(p.sum() * 0.0 for p in self.parameters() if p.requires_grad)


@losses.in_fp32
def _compare(loss: nn.Module, student: Tensor, teacher: Tensor, **more: Any) -> Tensor:
    return loss(student, teacher, **more)  # which need not be one of ours


class PerLevel(ModuleList):
    """One adapter a level."""

    def forward(self, feats: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Each level through its own adapter, to the size of the teacher's."""
        return [
            feat if isinstance(adapter, nn.Identity) else adapter(feat, size)
            for adapter, feat, size in zip(self, feats, sizes, strict=True)
        ]


def _last_queries(student: Tensor, s: FeatureSpec, teacher: Tensor, t: FeatureSpec) -> Tensor:
    """The student's queries (N, L, C) that the teacher has too: a DINO in training puts its denoising ones first."""
    more = s.size == t.size and len(s.size) == 1 and student.shape[1] > teacher.shape[1]
    return student[:, -teacher.shape[1] :] if more else student


def _shape(spec: FeatureSpec) -> str:
    kind = ('vectors', 'tokens', 'a map')[len(spec.size)]
    return f'{kind} of {spec.channels} channels' + (f' and size {spec.size}' if spec.size else '')


def _is_pyramid(cls: type) -> bool:
    """Whether an adapter takes all levels at once."""
    return getattr(cls, 'pyramid', False)


def _keeps_channels(adapter: nn.Module) -> bool:
    return isinstance(adapter, nn.Identity) or getattr(adapter, 'keeps_channels', False)
