"""The parts of a distiller from their configs; a wrong name or value is told with its key."""

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmsokd.checks import check_keys, nearest, telling
from mmsokd.registry import MODELS

# The rooms of mmsokd that parts come from, and what is in them.
_ROOMS = dict(
    losses='a loss',
    adapters='an adapter',
    augment=(
        "an augmentation of features, such as 'mmsokd.FeatureAugmentationNeck', or, for TST, of pictures, such as "
        "'mmsokd.ImageAugmenter'"
    ),
    areas="a detector of areas, such as 'mmsokd.DistinctiveAreaDetector'",
)
_OURS = ('augment', 'areas')  # the distiller needs more of these than to be called
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def part_class(key: str, cfg: Any, room: str, more: Iterable[str] = ()) -> type:
    """The class that ``cfg`` names.

    Args:
        key: the config key, for messages (``'terms.loss_hint.adapter'``).
        cfg: a dict with ``type``, a registered name or a class, and arguments of that class.
        room: the part of mmsokd that such classes are in (``'adapters'``). An adapter or a loss may be somebody else's
            class, but not one of ours from another room, nor derived from it.
        more: keys that ``cfg`` may hold beside them.

    Raises:
        ValueError: it is no such dict, the name is not registered or something else's, or an argument does not exist.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise ValueError(f"{key}: expected a dict with 'type', found {cfg!r}")
    kind = cfg['type']
    with telling(f'{key}.type'):
        cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None and isinstance(kind, str):
        near = nearest(kind.rpartition('.')[2], MODELS.module_dict)
        raise ValueError(f'{key}.type: expected a registered name, found {kind!r}; nearest: {near}')
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)) and not inspect.isfunction(cls):
        raise ValueError(f'{key}.type: expected the name or the class of {_ROOMS[room]}, found {kind!r}')
    rooms = {base.__module__.split('.')[1] for base in _bases(cls) if base.__module__.startswith('mmsokd.')}
    if (rooms or room in _OURS) and room not in rooms:
        raise ValueError(f'{key}.type: expected {_ROOMS[room]}, found {kind!r}')
    if not _takes_anything(cls):
        check_keys(key, cfg, ['type', *more, *inspect.signature(cls).parameters])
    return cls


def build_part(key: str, cfg: Any, room: str, **found: Any) -> nn.Module:
    """Build ``cfg``; of what was ``found`` it gets the arguments that its class takes and that it does not give itself.

    Raises:
        ValueError: as :func:`part_class` does, or an argument is missing.
        Exception: what the class raises; its message begins with the config's key, in the place of the class's name.
    """
    cls = part_class(key, cfg, room)
    accepted = inspect.signature(cls).parameters
    found = {name: value for name, value in found.items() if name in accepted or _takes_anything(cls)}
    cfg = {**found, **copy.deepcopy(dict(cfg)), 'type': cls}
    for name, parameter in accepted.items():
        if name not in cfg and parameter.default is parameter.empty and parameter.kind not in _VARIADIC:
            raise ValueError(f'{key}.{name}: expected a value, found none')
    with telling(key, *(base.__name__ for base in _bases(cls))):
        return MODELS.build(cfg)


def check_part(key: str, part: nn.Module, *kinds: type) -> None:
    """Raise ValueError unless ``part`` is one of ``kinds``, of those that are in its room."""
    if not isinstance(part, kinds):
        names = ', '.join(f"'mmsokd.{kind.__name__}'" for kind in kinds)
        raise ValueError(f'{key}.type: expected {names} or one derived from it, found {type(part).__name__}')


def _bases(cls: type) -> Iterable[type]:
    return getattr(cls, '__mro__', ())  # the registry takes functions too


def _takes_anything(cls: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
