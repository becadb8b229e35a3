"""Taps: where a feature is read, and how a model is stopped once it has given all of them.

A tap is written ``path``, ``path[2]`` or ``path[:3]``: the dotted path of a submodule, and which of its outputs. A
module that returns one tensor gives one level, a tuple of tensors gives a pyramid, and so does a module that is called
once a level (``bbox_head.retina_cls``). A tuple of such texts gives the levels of all of them, in that order.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from mmsokd.checks import nearest, telling

Tap = str | tuple[str, ...]
_AUXILIARY = 'auxiliary_head'  # of mmseg, which runs it in `loss` mode only

_TAP = re.compile(r'^(?P<module>\w+(?:\.\w+)*)(?P<index>(?:\[(?:-?\d+|(?:-?\d+)?:(?:-?\d+)?)\])*)$')


class UnknownTapError(KeyError, ValueError):
    """A tap that names no submodule, or an output that is not there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ''


class TapPath(NamedTuple):
    """A parsed tap: a module's path and the indices behind it."""

    module: str
    index: tuple[int | slice, ...]


class FeatureSpec(NamedTuple):
    """What the dry run saw of one level of a tap.

    ``stride`` is the input's side over the map's, rounded; ``signed`` tells whether the feature takes negative values.
    ``extra`` is None but for a transformer's tokens that lie on a grid: the number of class tokens before them.
    """

    channels: int
    size: tuple[int, ...]
    stride: int
    signed: bool
    extra: int | None = None


class Probe(NamedTuple):
    """What a dry run saw.

    ``calls``: how often each tapped module was called. ``overwritten``: those whose output a later layer changes in
    place, such as a norm before ``ReLU(inplace=True)``. ``follows``: of each tap, level by level, whether it changes
    with the layer ``at``; nothing without one.
    """

    specs: dict[Tap, list[FeatureSpec]]
    calls: dict[str, int]
    overwritten: frozenset[str]
    follows: dict[Tap, list[bool]]


class _StopForward(Exception):
    """Raised by the last tap to end a forward; never leaves this module."""


def parse_tap(tap: str) -> TapPath:
    """Split ``'neck[2]'`` into ``('neck', (2,))``.

    Raises:
        ValueError: the text is not ``path`` or ``path[index]``.
    """
    found = _TAP.match(tap) if isinstance(tap, str) else None
    if found is None:
        raise ValueError(f"tap: expected 'path.of.module', 'path.of.module[2]' or '[:3]' behind it, found {tap!r}")
    return TapPath(found['module'], tuple(map(_index, re.findall(r'\[(.*?)\]', found['index']))))


def paths_of(tap: Tap) -> tuple[str, ...]:
    """The single taps that ``tap`` is made of."""
    return tap if isinstance(tap, tuple) else (tap,)


def _index(text: str) -> int | slice:
    start, colon, stop = text.partition(':')
    return slice(int(start) if start else None, int(stop) if stop else None) if colon else int(start)


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The submodule of ``root`` at ``path``.

    Raises:
        UnknownTapError: there is none; the message names the nearest paths.
    """
    try:
        return root.get_submodule(path)
    except AttributeError:
        near = nearest(path, (name for name, _ in root.named_modules() if name))
        raise UnknownTapError(
            f"tap: expected the path of a submodule of {type(root).__name__}, found '{path}'; nearest: {near}"
        ) from None


class FeatureTap:
    """Collects the outputs of some submodules while a ``with`` block runs the model.

    The wrapping of the modules' ``forward`` lives inside the block only, so that evaluation, export and deepcopy see an
    untouched model. (A forward hook would miss heads whose ``forward`` is called by name, as mmdet's detectors do.)
    Keep one and enter it every step: each step then installs the same functions, by which ``torch.compile`` knows what
    it has compiled.

    Args:
        model: the model that is run inside the block.
        taps: the taps to collect.
        calls: how often each tapped module is called in one forward (:attr:`Probe.calls`). When given, the forward
            is ended as soon as all of them were: everything behind the deepest tap never runs.
        copied: modules whose output is copied, so that no later layer changes it (:attr:`Probe.overwritten`).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
        >>> with FeatureTap(net, ['1'], calls={'1': 1}) as feats:
        ...     _ = net(torch.zeros(1, 3, 2, 2))
        >>> [tuple(level.shape) for level in feats['1']]
        [(1, 4, 2, 2)]
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[Tap],
        calls: Mapping[str, int] | None = None,
        copied: Iterable[str] = (),
    ) -> None:
        self._model = model
        self._taps = {path: parse_tap(path) for tap in taps for path in paths_of(tap)}
        self._calls = calls
        self._copied = frozenset(copied)
        self._replace: Mapping[str, Callable[[Any], Any]] = {}
        self._wrappers: dict[str, tuple[Callable, Callable]] = {}  # module -> its forward, and that with an ear
        self._wrapped: list[tuple[nn.Module, Any]] = []
        self._feats: Features | None = None

    def __getstate__(self) -> dict:
        # A copy wraps the copied modules: a function's closure is not copied with it.
        return {**vars(self), '_replace': {}, '_wrappers': {}, '_wrapped': [], '_feats': None}

    def replacing(self, replace: Mapping[str, Callable[[Any], Any]] | None) -> 'FeatureTap':
        """For the next ``with`` block: path of a submodule -> function of its output, whose value takes its place."""
        self._replace = replace or {}
        return self

    @torch.compiler.disable
    def __enter__(self) -> 'Features':
        if self._feats is not None:
            raise RuntimeError('FeatureTap: expected one block at a time, found one inside another')
        self._feats = Features(self._taps, self._calls, self._copied, self._replace)
        try:
            for name in self._feats.heard:
                module = find_module(self._model, name)
                wrapper = self._wrapper(name, module.forward)
                self._wrapped.append((module, vars(module).get('forward')))
                module.forward = wrapper
        except BaseException:
            self._unwrap()
            raise
        return self._feats

    @torch.compiler.disable
    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self._unwrap()
        return kind is _StopForward

    def _unwrap(self) -> None:
        for module, own in reversed(self._wrapped):  # one module may have two names
            del module.forward
            if own is not None:  # somebody else's wrapping, such as activation checkpointing
                module.forward = own
        self._wrapped, self._feats, self._replace = [], None, {}  # the features belong to the step

    def _wrapper(self, name: str, forward: Callable) -> Callable:
        if name not in self._wrappers or self._wrappers[name][0] != forward:

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                return self._hear(name, forward(*args, **kwargs))

            self._wrappers[name] = forward, wrapped
        return self._wrappers[name][1]

    @torch.compiler.disable
    def _hear(self, name: str, output: Any) -> Any:
        # Outside of the block a wrapper can only be called by a checkpointed forward that is computed again.
        return output if self._feats is None else self._feats.hear(name, output)


class Features:
    """The outputs of the tapped modules in one forward.

    Indexed by a tap, it gives that tap's levels.
    """

    def __init__(
        self,
        taps: Mapping[str, TapPath],
        calls: Mapping[str, int] | None,
        copied: frozenset[str],
        replace: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self._taps = taps
        self._outputs: dict[str, list[Any]] = {path.module: [] for path in taps.values()}
        self._expected = {name: calls[name] for name in self._outputs} if calls is not None else None
        self._copied = copied
        self._replace = replace

    @property
    def heard(self) -> list[str]:
        """The modules whose outputs matter."""
        return list(dict.fromkeys([*self._replace, *self._outputs]))

    @property
    def calls(self) -> dict[str, int]:
        """How often each tapped module was called."""
        return {name: len(outputs) for name, outputs in self._outputs.items()}

    def outputs(self, name: str) -> list[Any]:
        """What a tapped module returned, call by call."""
        return self._outputs[name]

    def hear(self, name: str, output: Any) -> Any:
        """Take the output of module ``name``; return what the network goes on with."""
        # The replacement comes first: a tap on the same module sees what the rest of the model sees.
        if name in self._replace:
            output = self._replace[name](output)
        if name in self._outputs:
            self._outputs[name].append(tree_map_only(Tensor, Tensor.clone, output) if name in self._copied else output)
            if self._expected is not None and all(len(self._outputs[n]) >= k for n, k in self._expected.items()):
                raise _StopForward
        return output

    def __getitem__(self, tap: Tap) -> list[Tensor]:
        """The levels of a tap.

        Raises:
            UnknownTapError: the module never ran, or has no such output.
            TypeError: the output is not a feature.
        """
        return [level for path in paths_of(tap) for level in self._read(path)]

    def _read(self, tap: str) -> list[Tensor]:
        path = self._taps.get(tap) or parse_tap(tap)  # any output of a tapped module
        outputs = self._outputs[path.module]
        if not outputs:
            raise UnknownTapError(
                f"tap '{tap}': expected a module that runs in the forward, found that '{path.module}' never does"
            )
        value = outputs[0] if len(outputs) == 1 else outputs
        for index in path.index:
            value = _pick(tap, value, index)
        return _levels(tap, value)


def _pick(tap: str, value: Any, index: int | slice) -> Any:
    """One output, or for a slice the list of several."""
    # With one level, [0] is the tensor itself and not its first sample.
    outputs = [value] if isinstance(value, Tensor) else value
    size = len(outputs) if isinstance(outputs, Sequence) else type(outputs).__name__
    try:
        chosen = list(outputs)[index] if isinstance(outputs, Sequence) else []
    except IndexError:
        chosen = []
    if isinstance(chosen, list) and not chosen:
        raise UnknownTapError(f"tap '{tap}': expected an index into the output, found {size} outputs")
    return chosen


def _levels(tap: str, value: Any) -> list[Tensor]:
    """``value`` as a list of float tensors (N, C), (N, L, C) or (N, C, H, W)."""
    levels = [value] if isinstance(value, Tensor) else value
    if not isinstance(levels, list | tuple) or not levels or not all(isinstance(x, Tensor) for x in levels):
        raise TypeError(
            f"tap '{tap}': expected a feature (a tensor, or a tuple of tensors), found {_describe(value)}; "
            f"pick one output as '{tap}[0]', or tap another layer"
        )
    for level in levels:
        if not level.is_floating_point() or level.dim() not in (2, 3, 4):
            raise TypeError(f"tap '{tap}': expected float tensors of 2 to 4 dimensions, found {_describe(level)}")
    return list(levels)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'{value.dtype} of shape {tuple(value.shape)}'
    if isinstance(value, list | tuple):
        return f'{type(value).__name__}({", ".join(_describe(x) for x in value)})'
    return type(value).__name__


def run_for_taps(model: nn.Module, taps: Iterable[Tap], inputs: Tensor, data_samples: list | None) -> None:
    """Run ``model`` far enough for ``taps``: the extractor alone where no head is tapped."""
    rooms = {parse_tap(path).module.split('.')[0] for tap in taps for path in paths_of(tap)} - {'backbone', 'neck'}
    if not hasattr(model, 'extract_feat') or (rooms and _AUXILIARY not in rooms):
        model(inputs, data_samples, mode='tensor')
        return
    feats = model.extract_feat(inputs)
    for room in rooms:
        heads = getattr(model, room)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            head(feats)


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Every part of ``model`` in eval mode; afterwards each in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def dry_inputs(model: nn.Module, size: int) -> tuple[Tensor, list[BaseDataElement]]:
    """The noise image of a dry run, ``size`` x ``size`` and always the same, and its sample without annotations."""
    device = next((p.device for p in model.parameters()), torch.device('cpu'))
    image = torch.randn(1, _channels(model), size, size, generator=torch.Generator().manual_seed(0)).to(device)
    shape = (size, size)
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
    return image, [BaseDataElement(metainfo=meta)]


@torch.no_grad()
def probe(
    model: nn.Module, taps: Iterable[Tap], size: int, at: str | None = None, keys: Mapping[Tap, str] | None = None
) -> Probe:
    """Dry-run ``model`` in eval mode on a noise image ``size`` x ``size`` and look at its taps.

    Neither the model's modes nor the global random state are changed. With ``at``, the path of a tapped layer, a second
    run with noise on that layer's output shows what follows it: neither the order of the calls nor the names tell.
    ``keys`` tells where the config has each tap, for messages.

    Raises:
        UnknownTapError, TypeError: as :class:`FeatureTap` does.
        ValueError: a feature's first dimension is not the batch, or a backbone's tokens lie on no grid.
    """
    taps = list(taps)
    image, samples = dry_inputs(model, size)
    watch = _Watch()
    paths = dict.fromkeys(path for tap in taps for path in paths_of(tap))
    names = {parse_tap(path).module for path in paths}
    tap = FeatureTap(model, taps, copied=names)

    def run(replace: Mapping[str, Callable[[Any], Any]]) -> Features:
        with torch.random.fork_rng(devices=[]), tap.replacing(replace) as feats:
            torch.default_generator.manual_seed(0)
            run_for_taps(model, taps, image, samples)
        return feats

    with in_eval(model):
        feats = run({name: watch.listener(name) for name in names})
        shaken = run({parse_tap(at).module: _shake}) if at is not None else None
    specs = {}
    for tap in taps:
        with telling(keys[tap]) if keys else nullcontext():
            specs[tap] = [spec_of(model, path, x, size) for path in paths_of(tap) for x in feats[path]]
    follows = {
        tap: [not torch.equal(*pair) for pair in zip(feats[tap], shaken[tap], strict=True)] for tap in taps if shaken
    }
    return Probe(specs, feats.calls, watch.overwritten, follows)


def _shake(output: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x + torch.randn_like(x) if x.is_floating_point() else x, output)


def _channels(model: nn.Module) -> int:
    """Of the pictures that ``model`` takes: as many as its preprocessor has means, or else as its first convolution
    takes; a multiple of three is colour, of which some stems make more channels (YOLOX's Focus).
    """
    means = getattr(getattr(model, 'data_preprocessor', None), 'mean', ())
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    return len(means) if len(means) > 1 else 3 if first % 3 == 0 else first


class _Watch:
    """Finds out whose output is changed in place after it was given."""

    def __init__(self) -> None:
        self._given: list[tuple[str, Tensor, int]] = []

    def listener(self, name: str) -> Callable[[Any], Any]:
        def listen(output: Any) -> Any:
            self._given += [(name, x, x._version) for x in tree_flatten(output)[0] if isinstance(x, Tensor)]
            return output

        return listen

    @property
    def overwritten(self) -> frozenset[str]:
        return frozenset(name for name, tensor, version in self._given if tensor._version != version)


def spec_of(model: nn.Module, tap: str, feat: Tensor, size: int) -> FeatureSpec:
    """What is to be known of ``feat``, one level of ``tap`` in a dry run of ``model`` at ``size``.

    Raises:
        ValueError: its first dimension is not the batch, or a backbone's tokens lie on no grid.
    """
    if len(feat) != 1:
        raise ValueError(
            f"tap '{tap}': expected the batch as first dimension, found shape {tuple(feat.shape)} for one picture: "
            'one row a proposal, window or decoder layer, not a picture; tap a layer before that, or one layer of it'
        )
    signed = bool((feat < 0).any())
    if feat.dim() != 3:
        sizes = tuple(feat.shape[2:])
        return FeatureSpec(feat.shape[1], sizes, round(size / sizes[0]) if sizes else 0, signed)
    count, channels = feat.shape[1:]
    extra = getattr(getattr(model, 'backbone', None), 'num_extra_tokens', 0)
    room = tap.split('.')[0]
    found = _class_tokens(count, size, extra) if room.startswith(('backbone', 'neck')) else None
    if found is None and room.startswith('backbone'):
        raise ValueError(
            f"tap '{tap}': expected tokens on a grid, found {count} for a picture of {size} x {size} pixels; set "
            "'probe_size' to a multiple of the patch size, such as 224 for patches of 14 or 16"
        )
    if found is None:  # queries
        return FeatureSpec(channels, (count,), 0, signed)
    side = math.isqrt(count - found)
    return FeatureSpec(channels, (side, side), round(size / side), signed, found)


def _class_tokens(count: int, size: int, known: int) -> int | None:
    """How many of ``count`` tokens stand before the grid of a square picture; None if there is no grid.

    ``known`` is what the backbone says, which an inner layer need not keep to; else the fewest that leave a grid: a
    class token, one for distillation, four or eight registers.
    """
    for extra in (known, *range(11)):
        side = math.isqrt(count - extra) if count > extra else 0
        if side and side * side == count - extra and size % side == 0:
            return extra
    return None


def as_map(feat: Tensor, spec: FeatureSpec, size: tuple[int, int]) -> Tensor:
    """Tokens (N, L, C) as a map (N, C, H, W) without the class tokens; anything else as it is.

    Args:
        feat: one level of a tap.
        spec: what the dry run saw there.
        size: height and width of the batch's pictures, in pixels.

    Raises:
        ValueError: the tokens do not fill a grid of the dry run's stride.
    """
    if spec.extra is None:
        return feat
    count = feat.shape[1] - spec.extra
    for rounded in (math.ceil, math.floor):  # a picture is padded to whole patches, or cut
        height, width = (rounded(side / spec.stride) for side in size)
        if height * width == count:
            return feat[:, spec.extra :].transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f'expected the tokens of a grid of stride {spec.stride} on pictures of {tuple(size)}, found {count}; '
        'tap a layer that gives a map (N, C, H, W)'
    )


def as_tokens(feat: Tensor, like: Tensor, spec: FeatureSpec) -> Tensor:
    """The inverse of :func:`as_map`: a map in the form of ``like``, of which it takes the class tokens."""
    if spec.extra is None:
        return feat
    return torch.cat([like[:, : spec.extra], feat.flatten(2).transpose(1, 2)], 1)


def match_levels(student: Sequence[FeatureSpec], teacher: Sequence[FeatureSpec]) -> list[tuple[int, int]] | None:
    """Pairs (student level, teacher level) of equal stride, or None where a student level has no partner.

    Two single levels are always a pair: whether their sizes fit is the adapter's matter. Where a stride occurs twice
    (dilated backbones) the order decides. Levels that only the teacher has are left out.
    """
    if len(student) == len(teacher) == 1:
        return [(0, 0)]
    free = list(range(len(teacher)))
    pairs = []
    for i, spec in enumerate(student):
        partner = next((j for j in free if teacher[j].stride == spec.stride), None)
        if partner is None:
            return None
        free.remove(partner)
        pairs.append((i, partner))
    return pairs
