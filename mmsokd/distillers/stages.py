"""Stages of two networks that stand for each other: where the config names them, and what goes in and out."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmsokd.checks import telling
from mmsokd.distillers.adapting import shape_text
from mmsokd.distillers.parts import part_class
from mmsokd.taps import FeatureSpec, find_module, parse_tap, probe


class Stage(NamedTuple):
    """A layer of the teacher and one of the student."""

    key: str
    teacher: str
    student: str


class Passage(NamedTuple):
    """What a layer was given and what it gave in a dry run: one map (1, C, H, W) each."""

    given: Tensor
    spec: FeatureSpec


def parse_stages(stages: Any, whole: Iterable[str] = ('student',)) -> list[Stage]:
    """The config's ``stages``: paths, or ``dict(teacher=..., student=...)`` where they differ.

    Args:
        stages: what the config has.
        whole: the sides on which a path has no index.

    Raises:
        ValueError: something else is there; the message tells the key.
    """
    if not isinstance(stages, list | tuple) or not stages:
        raise ValueError(f"stages: expected a list of paths, such as ['backbone.layer1'], found {stages!r}")
    found = []
    for i, stage in enumerate(stages):
        key = f'stages[{i}]'
        paths = dict(teacher=stage, student=stage) if isinstance(stage, str) else stage
        if not isinstance(paths, Mapping) or set(paths) != {'teacher', 'student'}:
            raise ValueError(f'{key}: expected a path or dict(teacher=..., student=...), found {stage!r}')
        for side, path in paths.items():
            with telling(f'{key}.{side}', 'tap'):
                if parse_tap(path).index and side in whole:
                    raise ValueError(f'expected a path without an index, found {path!r}')
        found.append(Stage(key, **paths))
    return found


def check_transform(cfg: Mapping) -> None:
    """Raise ValueError unless the config's ``transform`` is an adapter that maps one number of channels to another."""
    accepted = inspect.signature(part_class('transform', cfg, 'adapters')).parameters
    if not {'in_channels', 'out_channels', 'resize'} <= set(accepted):
        raise ValueError(
            f"transform.type: expected an adapter of maps, such as 'mmsokd.ConvAdapter', found {cfg['type']!r}"
        )


def pass_through(model: nn.Module, paths: Mapping[str, str], size: int) -> dict[str, Passage]:
    """Dry-run ``model`` and look at what goes through some of its layers.

    Args:
        model: in eval mode for this; left as it is.
        paths: config key -> path of a layer.
        size: side of the noise image, in pixels.

    Raises:
        UnknownTapError: there is no such layer, or it never runs.
        ValueError: it runs more than once, or something else than one map goes in or out.
    """
    calls: dict[str, list[tuple[tuple, dict]]] = {path: [] for path in paths.values()}
    hooks = []
    try:
        for key, path in paths.items():
            with telling(key, 'tap'):
                layer = find_module(model, path)
            listen = calls[path]
            hooks.append(
                layer.register_forward_pre_hook(
                    # a copy: the layer may change it in place
                    lambda _, args, kwargs, listen=listen: listen.append(
                        (tree_map_only(Tensor, Tensor.clone, args), kwargs)
                    ),
                    with_kwargs=True,
                )
            )
        specs = probe(model, paths.values(), size, keys={path: key for key, path in paths.items()}).specs
    finally:
        for hook in hooks:
            hook.remove()
    return {path: _passage(key, path, calls[path], specs[path]) for key, path in paths.items()}


def _passage(key: str, path: str, calls: list[tuple[tuple, dict]], specs: list[FeatureSpec]) -> Passage:
    if len(calls) != 1:
        raise ValueError(f"{key}: expected a layer that runs once in a forward, found {len(calls)} calls of '{path}'")
    ((args, kwargs),) = calls
    given = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(given, Tensor) or given.dim() != 4:
        raise ValueError(f"{key}: expected a layer that takes one map (N, C, H, W) and nothing else, found '{path}'")
    if len(specs) != 1 or len(specs[0].size) != 2 or specs[0].extra is not None:
        raise ValueError(f'{key}: expected a layer that gives one map, found {[shape_text(spec) for spec in specs]}')
    return Passage(given, specs[0])
