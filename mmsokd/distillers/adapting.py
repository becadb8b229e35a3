"""A term's adapter: which one it takes, and whether it brings both sides together."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmengine.model import ModuleList
from torch import Tensor, nn

from mmsokd.adapters import LinearAdapter
from mmsokd.distillers.parts import build_part, part_class
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureSpec

INFERRED = 'inferred'  # where the config names none


class PerLevel(ModuleList):
    """One adapter a level."""

    def forward(self, feats: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Each level through its own adapter, to the size of the teacher's."""
        return [
            feat if isinstance(adapter, nn.Identity) else adapter(feat, size)
            for adapter, feat, size in zip(self, feats, sizes, strict=True)
        ]

    def match(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Each of the teacher's levels, in the adapted student's channels where its adapter picks them."""
        return [
            adapter.match(s, t) if picks_channels(adapter) else t
            for adapter, s, t in zip(self, student, teacher, strict=True)
        ]


class Fit(NamedTuple):
    """What a term's adapter has to bring together.

    Attributes:
        key: where the config has the term, for messages.
        adapter_key: likewise the adapter.
        where: the taps, for messages.
        resize_by: what the config says to bring maps of unequal size together, for messages.
        cfg: the adapter's config, None, or :data:`INFERRED`.
        specs: what the dry runs saw, student and teacher, level by level.
        own: registered name of an adapter that belongs to the loss.
        on_logits: the loss compares logits.
        equal_channels: both sides need as many channels.
        equal_sizes: both sides need one size.
    """

    key: str
    adapter_key: str
    where: str
    resize_by: str
    cfg: Any
    specs: Sequence[tuple[FeatureSpec, FeatureSpec]]
    own: str | None
    on_logits: bool
    equal_channels: bool
    equal_sizes: bool

    def build(self, default: str | None) -> nn.Module:
        """One adapter a level, or one for the whole pyramid where its class says so.

        Args:
            default: registered adapter to take for features where the config and the loss name none.

        Raises:
            ValueError: it does not bring the channels or sizes together.
        """
        cfg = self.cfg
        default = self.own or default
        if cfg == INFERRED and default is not None and is_pyramid(MODELS.get(default)):
            cfg = dict(type=default)
        if cfg not in (None, INFERRED):
            cls = part_class(self.adapter_key, cfg, 'adapters')
            self._check_kind(cls)
            if is_pyramid(cls):
                self._check_order()
                students, teachers = zip(*self.specs, strict=True)
                widths = [s.channels for s in students], [t.channels for t in teachers]
                return build_part(self.adapter_key, cfg, 'adapters', in_channels=widths[0], out_channels=widths[1])
        adapters = PerLevel(self._build_level(cfg, default, s, t) for s, t in self.specs)
        for adapter, (s, t) in zip(adapters, self.specs, strict=True):
            self._check(adapter, s, t)
        return adapters

    def _build_level(self, cfg: Any, default: str | None, s: FeatureSpec, t: FeatureSpec) -> nn.Module:
        if cfg == INFERRED:
            cfg = self._inferred(default, s, t)
        if cfg is None:
            return nn.Identity()
        ratio = t.size[0] / s.size[0] if cfg.get('resize') == 'conv' else 1.0
        found = dict(in_channels=s.channels, out_channels=t.channels, stride_ratio=ratio)
        if 'signed' in inspect.signature(part_class(self.adapter_key, cfg, 'adapters')).parameters:
            found['signed'] = t.signed
        return build_part(self.adapter_key, cfg, 'adapters', **found)

    def _inferred(self, default: str | None, s: FeatureSpec, t: FeatureSpec) -> dict | None:
        """The loss's own, SoKD's, a linear one where the channels have to agree and do not, or none."""
        is_feature = self._are_maps and not self.on_logits
        if is_feature and self.own is not None:
            return dict(type=self.own)
        if is_feature and default is not None:
            return dict(type=default, **self._dense_options(t))
        if s.channels != t.channels and self.equal_channels and not self.on_logits:
            return dict(type=f'mmsokd.{self._plain}')
        return None

    def _dense_options(self, t: FeatureSpec) -> dict:
        """SoKD's three-conv adapter at a width and with a norm that suit the map [ours].

        The authors' CIFAR code has one map and a BN at full width. On a pyramid that would cost as much as a
        detection head, and a level of one cell with a batch of one has no batch statistics.
        """
        pyramid = len(self.specs) > 1
        width = min(t.channels, 64 if pyramid else 256)
        groups = next(g for g in (16, 8, 4, 2, 1) if width % g == 0 and t.channels % g == 0)
        norm = dict(type='GN', num_groups=groups) if pyramid else dict(type='BN')
        return dict(feat_channels=width, norm_cfg=norm)

    @property
    def _are_maps(self) -> bool:
        return are_maps(self.specs)

    @property
    def _plain(self) -> str:
        return 'ConvAdapter' if self._are_maps else 'LinearAdapter'

    def _check_order(self) -> None:
        """An adapter that fuses levels goes from the deepest to the finest."""
        strides = [s.stride for s, _ in self.specs]
        if strides != sorted(strides):
            raise ValueError(
                f'{self.key}: expected the levels from fine to coarse, found strides {strides} at {self.where}'
            )

    def _check_kind(self, cls: type) -> None:
        """An adapter that resizes, or fuses levels, is made for maps, a linear one for anything else."""
        if self.on_logits and not getattr(cls, 'keeps_channels', False):
            raise ValueError(
                f"{self.adapter_key}: expected none, or dict(type='mmsokd.ResizeAdapter'), for logits, whose channels "
                f'have a meaning, found {cls.__name__}'
            )
        on_maps = 'resize' in inspect.signature(cls).parameters or is_pyramid(cls)
        if issubclass(cls, LinearAdapter) if self._are_maps else on_maps:
            found = ', '.join(f'{shape_text(s)} and {shape_text(t)}' for s, t in self.specs)
            raise ValueError(
                f"{self.adapter_key}: expected none, or dict(type='mmsokd.{self._plain}'), for {found} at "
                f'{self.where}, found {cls.__name__}'
            )

    def _check(self, adapter: nn.Module, s: FeatureSpec, t: FeatureSpec) -> None:
        if keeps_channels(adapter) and s.channels != t.channels and self.equal_channels:
            mend = f"leave 'adapter' out, or give dict(type='mmsokd.{self._plain}')"
            if self.on_logits:
                mend = (
                    'logits are compared class by class: are both models made for the same classes, and, of detectors, '
                    'for as many anchors?'
                )
            raise ValueError(
                f'{self.adapter_key}: expected equal channels without an adapter, found {s.channels} and '
                f'{t.channels} at {self.where}; {mend}'
            )
        if s.size != t.size and self.equal_sizes and getattr(adapter, 'resize', None) is None:
            mend = f'give {self.resize_by}, or tap another layer' if self._are_maps else 'tap another layer'
            raise ValueError(
                f'{self.key}: expected equal sizes, found {s.size} (stride {s.stride}) and {t.size} '
                f'(stride {t.stride}) at {self.where}; {mend}'
            )


def are_maps(specs: Sequence[tuple[FeatureSpec, FeatureSpec]]) -> bool:
    """Whether both sides are maps (N, C, H, W), at every level."""
    return all(len(s.size) == len(t.size) == 2 for s, t in specs)


RANKS = {2: 'vectors (N, C)', 3: 'tokens (N, L, C)', 4: 'maps (N, C, H, W)'}


def shape_text(spec: FeatureSpec) -> str:
    """What a dry run saw, for messages."""
    kind = ('vectors', 'tokens', 'a map')[len(spec.size)]
    return f'{kind} of {spec.channels} channels' + (f' and size {spec.size}' if spec.size else '')


def keeps_channels(adapter: nn.Module) -> bool:
    """Whether what comes out of an adapter has the student's channels."""
    return isinstance(adapter, nn.Identity) or getattr(adapter, 'keeps_channels', False)


def picks_channels(adapter: nn.Module) -> bool:
    """Whether an adapter's ``match(student, teacher)`` gives the teacher's level in the student's channels."""
    return getattr(adapter, 'picks_channels', False)


def compared_channels(adapter: nn.Module, s: FeatureSpec, t: FeatureSpec) -> tuple[int, int]:
    """How many channels of either side are compared."""
    if picks_channels(adapter):
        return s.channels, s.channels
    return s.channels if keeps_channels(adapter) else t.channels, t.channels


def is_pyramid(cls: type) -> bool:
    """Whether an adapter takes all levels at once."""
    return getattr(cls, 'pyramid', False)
