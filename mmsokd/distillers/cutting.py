"""Copies of a model that go on from one of its stages and run nothing before it."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmsokd.checks import telling
from mmsokd.taps import FeatureTap, Tap, find_module, parse_tap, paths_of, probe


class Given(nn.Module):
    """In the place of a stage: gives the feature that it was handed, whatever it is called with."""

    feat: Tensor | None = None

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor | None:
        """The feature."""
        return self.feat


class Cutter:
    """Cuts a model behind its stages.

    A dry run tells what runs before a stage, and what the stages and the logits are. A copy that is handed these very
    features must give these very logits: so a model that cannot be cut is found when it is built.

    Args:
        model: is left as it is.
        stages: config key -> path of a submodule that gives one map (N, C, H, W), in the order in which they run.
        logits: a tap.
        size: side of the noise image, in pixels.

    Attributes:
        probe: what the dry run saw of stages and logits.

    Raises:
        UnknownTapError, TypeError, ValueError: a stage is no submodule, gives something else, is out of order, or comes
            after the logits.
    """

    def __init__(self, model: nn.Module, stages: Mapping[str, str], logits: Tap, size: int) -> None:
        self._model, self._stages, self._size = model, stages, size
        self._ends = [logits, *_auxiliary_heads(model)]
        for key, path in stages.items():
            with telling(key, 'tap'):
                find_module(model, path)
        taps = [*stages.values(), *self._ends]
        with _listening(model, taps) as self._feats, timing(model) as (self._began, self._ended):
            self.probe = probe(model, taps, size)
        before: tuple[str, int] | None = None
        for key, path in stages.items():
            sizes = [spec.size for spec in self.probe.specs[path]]
            if len(sizes) != 1 or len(sizes[0]) != 2:
                raise ValueError(f'{key}: expected a layer that gives one map (N, C, H, W), found sizes {sizes}')
            if before is not None and self._began[path] < before[1]:
                raise ValueError(f"{key}: expected a layer that runs after '{before[0]}', found '{path}'")
            before = path, self._ended[path]
        early = [path for path in paths_of(logits) if before and self._ended[parse_tap(path).module] < before[1]]
        if early:
            raise ValueError(
                f"kl.tap: expected logits that come after the stages, of which the last is '{before[0]}', found "
                f"'{early[0]}'"
            )

    def cut(self, index: int) -> nn.Module:
        """A copy from behind the stage ``index`` on; a :class:`Given` stands for each stage that it reads.

        Raises:
            ValueError: what follows reads more of what runs before than the stages.
        """
        paths = list(self._stages.values())
        key, last = list(self._stages.items())[index]
        part = copy.deepcopy(self._model)
        gone: list[str] = []
        for name, _ in self._model.named_modules():
            is_before = name == last or self._ended.get(name, torch.inf) < self._began[last]
            if is_before and not name.startswith(tuple(f'{other}.' for other in gone)):
                parent, _, leaf = name.rpartition('.')
                stage = Given(paths.index(name)) if name in paths else nn.Identity()
                part.get_submodule(parent).add_module(leaf, stage)
                gone.append(name)
        self._check(key, part)
        return part

    def _check(self, key: str, part: nn.Module) -> None:
        given = {i: self._feats[path][0] for i, path in enumerate(self._stages.values())}
        try:
            with handing(part, given), _listening(part, self._ends) as found:
                probe(part, self._ends, self._size)
            same = all(
                torch.equal(ours, theirs)
                for tap in self._ends
                for ours, theirs in zip(found[tap], self._feats[tap], strict=True)
            )
            error = None
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as raised:
            same, error = False, raised
        if not same:
            why = f' ({type(error).__name__}: {error})' if error is not None else ''
            raise ValueError(
                f'{key}: expected a stage whose map, and those of the stages before it, are all that the rest of the '
                f"model reads, found '{self._stages[key]}', behind which it gives something else{why}; list every "
                'earlier stage that a neck or a head reads, too'
            ) from error


@contextmanager
def handing(part: nn.Module, feats: Mapping[int, Tensor]) -> Iterator[None]:
    """Within, the stages that ``part`` was cut from give ``feats``, which it does not keep."""
    stages = [module for module in part.modules() if isinstance(module, Given)]
    try:
        for stage in stages:
            stage.feat = feats[stage.stage]
        yield
    finally:
        for stage in stages:
            stage.feat = None


def _listening(model: nn.Module, taps: list[Tap]) -> FeatureTap:
    """What later layers do in place is not seen."""
    return FeatureTap(model, taps, copied=[parse_tap(path).module for tap in taps for path in paths_of(tap)])


def _auxiliary_heads(model: nn.Module) -> list[str]:
    """Of mmseg, which read the backbone beside the decode head."""
    heads = getattr(model, 'auxiliary_head', None)
    if heads is None:
        return []
    return (
        [f'auxiliary_head.{i}' for i in range(len(heads))] if isinstance(heads, nn.ModuleList) else ['auxiliary_head']
    )


@contextmanager
def timing(model: nn.Module) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """When each submodule was first called, and when its last call ended."""
    began: dict[str, int] = {}
    ended: dict[str, int] = {}
    clock = itertools.count()

    def begin(name: str) -> None:
        began.setdefault(name, next(clock))

    def end(name: str) -> None:
        ended[name] = next(clock)

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: begin(name)))
        hooks.append(module.register_forward_hook(lambda *_, name=name: end(name)))
    try:
        yield began, ended
    finally:
        for hook in hooks:
            hook.remove()
