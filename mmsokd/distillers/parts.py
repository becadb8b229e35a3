"""The parts of a distiller from their configs; a wrong name is told with its key and the nearest right one."""

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmsokd.checks import nearest
from mmsokd.registry import MODELS


def part_class(key: str, cfg: Any, more: Iterable[str] = ()) -> type:
    """The class that ``cfg`` names.

    Args:
        key: the config key, for messages (``'terms.loss_hint.adapter'``).
        cfg: a dict with ``type``, a registered name or a class, and arguments of that class.
        more: keys that ``cfg`` may hold beside them.

    Raises:
        ValueError: it is no such dict, the name is not registered, or an argument does not exist.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise ValueError(f"{key}: expected a dict with 'type', found {cfg!r}")
    kind = cfg['type']
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        near = nearest(kind.rpartition('.')[2], MODELS.module_dict)
        raise ValueError(f'{key}.type: expected a registered name, found {kind!r}; nearest: {near}')
    if not _takes_anything(cls):
        allowed = ['type', *more, *inspect.signature(cls).parameters]
        for name in cfg:
            if name not in allowed:
                near = nearest(name, allowed, n=1)
                raise ValueError(f'{key}.{name}: expected one of {sorted(set(allowed))}; nearest: {near}')
    return cls


def build_part(key: str, cfg: Any, **found: Any) -> nn.Module:
    """Build ``cfg``; of what was ``found`` it gets the arguments that its class takes and that it does not give itself.

    Raises:
        ValueError: as :func:`part_class` does, or as the class does.
    """
    cls = part_class(key, cfg)
    accepted = inspect.signature(cls).parameters
    found = {name: value for name, value in found.items() if name in accepted or _takes_anything(cls)}
    return MODELS.build({**found, **copy.deepcopy(dict(cfg)), 'type': cls})


def _takes_anything(cls: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
