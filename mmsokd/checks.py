"""Error messages: what was expected, what was found, how to mend it."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

_LARGEST, _SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny  # what a loss can compute with


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """The up to ``n`` candidates a user most probably meant by ``name``, best first.

    A dotted path is compared first as a whole, then by its last component, so that ``neck.layer3`` finds
    ``backbone.layer3``. Capitals do not count.
    """
    name, meant = name.lower(), {c.lower(): c for c in candidates}
    close = difflib.get_close_matches(name, meant, n=n, cutoff=0.6)
    tail = name.rsplit('.', 1)[-1]
    by_tail = [c for c in meant if c.rsplit('.', 1)[-1] == tail]
    loose = difflib.get_close_matches(name, meant, n=n, cutoff=0.3)
    return [meant[c] for c in dict.fromkeys([*close, *by_tail, *loose])][:n]


@contextmanager
def telling(key: str, *names: str) -> Iterator[None]:
    """Let an error that is raised within begin with the config's ``key``; it stays the error that it is.

    Args:
        key: where in the config the error belongs to.
        names: what the raiser may have called it; the key takes their place.
    """
    try:
        yield
    except Exception as error:
        text, *more = error.args or (type(error).__name__,)
        if isinstance(text, str):  # else it is not built from a message
            error.args = (_keyed(text, key, names), *more)
        raise


def _keyed(text: str, key: str, names: Iterable[str]) -> str:
    for name in (key, *names):
        if text.startswith((f'{name}.', f'{name}:')):
            return key + text.removeprefix(name)
    return f'{key}: {text}'


def check_choice(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; the message names the nearest one."""
    choices = list(choices)
    if value in choices:
        return
    near = nearest(str(value), map(str, choices), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ''
    raise ValueError(f'{key}: expected one of {choices}, found {value!r}{hint}')


def check_keys(key: str, given: Iterable[Any], allowed: Iterable[str]) -> None:
    """Raise ValueError unless all keys that the config has below ``key`` are ``allowed``; names the nearest one."""
    allowed = sorted(set(allowed))
    for name in given:
        if name not in allowed:
            near = nearest(str(name), allowed, n=1)
            raise ValueError(f'{key}.{name}: expected one of {allowed}, found {name!r}; nearest: {near}')


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_factor(value: Any, least: float = 0) -> bool:
    """Whether ``value`` is a number >= ``least`` by which a float32 can be multiplied."""
    return is_number(value) and least <= value <= _LARGEST


def check_range(key: str, value: Any, low: float, high: float, closed: bool = True) -> None:
    """Raise ValueError unless ``value`` is a number in [low, high], or in [low, high) if not ``closed``."""
    if not is_number(value) or not low <= value <= high or (value == high and not closed):
        raise ValueError(f'{key}: expected a number in [{low}, {high}{"]" if closed else ")"}, found {value!r}')


def check_number(key: str, value: Any, least: float = 0) -> None:
    """Raise ValueError unless ``value`` is a number >= ``least`` that float32 holds."""
    if not is_factor(value, least):
        raise ValueError(f'{key}: expected a number >= {least}, found {value!r}{_beyond(value)}')


def check_positive(key: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a number > 0 that float32 holds."""
    if not is_factor(value, _SMALLEST):
        raise ValueError(f'{key}: expected a number > 0, found {value!r}{_beyond(value)}')


def _beyond(value: Any) -> str:
    is_beyond = is_number(value) and math.isfinite(value) and value > 0
    return ', which float32 does not hold' if is_beyond and not _SMALLEST <= value <= _LARGEST else ''


def check_integer(key: str, value: Any, least: int | None = None) -> None:
    """Raise ValueError unless ``value`` is an integer of 32 bits, and >= ``least`` where that is given."""
    fits = is_number(value) and isinstance(value, Integral) and -(2**31) <= value < 2**31
    if not fits or (least is not None and value < least):
        raise ValueError(f'{key}: expected an integer{"" if least is None else f" >= {least}"}, found {value!r}')


def check_bool(key: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is True or False: any text would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f'{key}: expected True or False, found {value!r}')


def check_pair(key: str, value: Any, low: float, high: float, closed: bool = True) -> None:
    """Raise ValueError unless ``value`` is a list or tuple of two numbers in the range of :func:`check_range`."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f'{key}: expected two numbers, found {value!r}')
    for number in value:
        check_range(key, number, low, high, closed)


def check_layer(key: str, cfg: Any) -> None:
    """Raise ValueError unless ``cfg`` is None or the config of a registered layer, or of a layer's class."""
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    if cfg is not None and not isinstance(kind, str) and not callable(kind):
        raise ValueError(f"{key}: expected None or a dict with 'type', found {cfg!r}")
    with MODELS.switch_scope_and_registry(None) as registry:  # as mmcv does
        if isinstance(kind, str) and registry.get(kind) is None:
            near = nearest(kind, MODELS.module_dict)
            raise ValueError(f'{key}.type: expected a registered layer, found {kind!r}; nearest: {near}')


def check_norm(key: str, norm_cfg: Any, *widths: int) -> None:
    """Raise ValueError unless ``norm_cfg`` is None or a norm layer's config that fits ``widths`` channels.

    GroupNorm's ``num_groups`` is the user's to choose; mmcv tells of a wrong one without its key.
    """
    check_layer(key, norm_cfg)
    if norm_cfg is None or norm_cfg['type'] != 'GN':
        return
    groups = norm_cfg.get('num_groups')
    check_integer(f'{key}.num_groups', groups, 1)
    for width in widths:
        if width % groups:
            raise ValueError(f'{key}.num_groups: expected a divisor of the {width} channels, found {groups}')


_MEND = "give this term adapter=dict(type='mmsokd.ConvAdapter', resize='bilinear') or tap another layer"


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both features have one shape."""
    if student.shape != teacher.shape:
        raise ValueError(
            f'expected equal shapes, found student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; {_MEND}'
        )


def check_maps(student: Tensor, teacher: Tensor, same_channels: bool = True) -> None:
    """Raise ValueError unless both features are maps (N, C, H, W) of one shape, but for C if not ``same_channels``."""
    shapes = [list(x.shape) for x in (student, teacher)]
    fits = all(len(shape) == 4 for shape in shapes)
    if fits and not same_channels:
        shapes[0][1] = shapes[1][1]
    if not fits or shapes[0] != shapes[1]:
        channels = '' if same_channels else ', whose channels may differ'
        raise ValueError(
            f'expected maps (N, C, H, W) of one size{channels}, found student {tuple(student.shape)}, teacher '
            f'{tuple(teacher.shape)}; {_MEND}'
        )
