"""Error messages: what was expected, what was found, how to mend it."""

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from torch import Tensor


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """The up to ``n`` candidates a user most probably meant by ``name``, best first.

    A dotted path is compared first as a whole, then by its last component, so that ``neck.layer3`` finds
    ``backbone.layer3``.
    """
    candidates = list(candidates)
    close = difflib.get_close_matches(name, candidates, n=n, cutoff=0.6)
    tail = name.rsplit('.', 1)[-1]
    by_tail = [c for c in candidates if c.rsplit('.', 1)[-1] == tail]
    loose = difflib.get_close_matches(name, candidates, n=n, cutoff=0.3)
    return list(dict.fromkeys([*close, *by_tail, *loose]))[:n]


def check_choice(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; the message names the nearest one."""
    choices = list(choices)
    if value in choices:
        return
    near = nearest(str(value), map(str, choices), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ''
    raise ValueError(f'{key}: expected one of {choices}, found {value!r}{hint}')


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f'{key}: expected a number in [{low}, {high}], found {value!r}')


def check_number(key: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a finite number >= 0."""
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f'{key}: expected a number >= 0, found {value!r}')


def check_positive(key: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a finite number > 0."""
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise ValueError(f'{key}: expected a number > 0, found {value!r}')


def check_bool(key: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is True or False: any text would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f'{key}: expected True or False, found {value!r}')


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both features have one shape."""
    if student.shape != teacher.shape:
        raise ValueError(
            f'expected equal shapes, found student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; '
            "give this term adapter=dict(type='mmsokd.ConvAdapter', resize='bilinear') or tap another layer"
        )
