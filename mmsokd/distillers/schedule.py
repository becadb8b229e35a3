"""A term's weight over the training."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from mmengine.logging import MessageHub

from mmsokd.checks import check_choice, nearest

# How far a ramp is from its start (0) to its end (1), when a fraction of its time is over.
SHAPES: dict[str, Callable[[float], float]] = {
    'constant': lambda fraction: 0.0,
    'linear': lambda fraction: fraction,
    'cosine': lambda fraction: (1 - math.cos(math.pi * fraction)) / 2,
}
_KEYS = ('shape', 'start', 'final', 'begin', 'end', 'stop', 'by_epoch')


class Clock(NamedTuple):
    """Where the training is. Without a Runner it stands at its beginning."""

    iter: int = 0
    max_iters: int = 0
    max_epochs: int = 0

    @classmethod
    def now(cls) -> 'Clock':
        """As MMEngine's message hub tells it, so that a resumed run reads it right."""
        info = MessageHub.get_current_instance().runtime_info
        return cls(info.get('iter', 0), info.get('max_iters') or 0, info.get('max_epochs') or 0)

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.iter / self.max_iters) if self.max_iters else 0.0

    @property
    def epoch(self) -> float:
        """Epochs so far, with their fraction."""
        return self.iter * self.max_epochs / self.max_iters if self.max_iters else 0.0


class WeightSchedule:
    """A term's weight: one number, knots that are joined linearly, or a ramp.

    Args:
        key: the config key, for messages.
        value: a number >= 0; or ``[(progress, weight), ...]``, where progress runs from 0 to 1 over the training; or a
            dict of ``shape`` (``'constant'``, ``'linear'``, ``'cosine'``), ``start`` (1), ``final`` (0), ``begin``
            and ``end`` of the ramp (the whole training), ``stop``, from which on the weight is 0, and ``by_epoch``
            (True), the unit of these three.

    Raises:
        ValueError: none of these, knots out of order, or a time that cannot be.

    Example:
        >>> warm_up = WeightSchedule('terms.loss_kd.loss_weight', [(0.0, 0.0), (0.1, 1.0)])
        >>> warm_up(Clock(5, 100)), warm_up(Clock(50, 100))
        (0.5, 1.0)
        >>> until = WeightSchedule('terms.loss_kd.loss_weight', dict(shape='constant', start=2.0, stop=8))
        >>> until(Clock(79, 120, 12)), until(Clock(80, 120, 12))
        (2.0, 0.0)
    """

    def __init__(self, key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self._weight = _ramp(key, dict(value))
        else:
            knots = _knots(key, value)
            self._weight = lambda clock: _interpolate(knots, clock.progress)

    def __call__(self, clock: Clock) -> float:
        """The weight at ``clock``."""
        return self._weight(clock)


def _knots(key: str, value: Any) -> list[tuple[float, float]]:
    try:
        knots = [(0.0, value)] if isinstance(value, Real) else value
        knots = [(float(progress), float(weight)) for progress, weight in knots]
    except (TypeError, ValueError):
        knots = []
    times = [progress for progress, _ in knots]
    good = all(math.isfinite(weight) and weight >= 0 for _, weight in knots)
    if not times or not good or times != sorted(times) or not 0 <= times[0] <= times[-1] <= 1:
        raise ValueError(
            f'{key}: expected a number >= 0, [(progress, weight), ...] with progress rising within [0, 1], or '
            f"dict(shape='cosine', start=1.0, final=0.0), found {value!r}"
        )
    return knots


def _interpolate(knots: list[tuple[float, float]], progress: float) -> float:
    before = [knot for knot in knots if knot[0] <= progress] or knots[:1]
    after = [knot for knot in knots if knot[0] > progress] or knots[-1:]
    (t0, w0), (t1, w1) = before[-1], after[0]
    return w0 if t1 <= t0 else w0 + (w1 - w0) * (progress - t0) / (t1 - t0)


def _ramp(key: str, cfg: dict) -> Callable[[Clock], float]:
    for name in cfg:
        if name not in _KEYS:
            raise ValueError(f'{key}.{name}: expected one of {list(_KEYS)}; nearest: {nearest(name, _KEYS, n=1)}')
    shape, by_epoch = cfg.get('shape', 'constant'), cfg.get('by_epoch', True)
    check_choice(f'{key}.shape', shape, SHAPES)
    start, final, begin = cfg.get('start', 1.0), cfg.get('final', 0.0), cfg.get('begin', 0)
    end, stop = cfg.get('end'), cfg.get('stop')
    for name, number in dict(start=start, final=final, begin=begin, end=end, stop=stop).items():
        if number is not None and not (isinstance(number, Real) and math.isfinite(number) and number >= 0):
            raise ValueError(f'{key}.{name}: expected a number >= 0, found {number!r}')
    if end is not None and end <= begin:
        raise ValueError(f'{key}.end: expected a time after begin={begin}, found {end}')

    latest = max(time for time in (begin, end, stop) if time is not None)

    def weight(clock: Clock) -> float:
        time, last = (clock.epoch, clock.max_epochs) if by_epoch else (clock.iter, clock.max_iters)
        if last and latest > last:
            unit = 'epochs (an iteration-based loop counts as one: by_epoch=False)' if by_epoch else 'iterations'
            raise ValueError(f'{key}: expected times within the training of {last} {unit}, found {latest}')
        if stop is not None and time >= stop:
            return 0.0
        length = (last if end is None else end) - begin
        fraction = min(max((time - begin) / length, 0.0), 1.0) if length > 0 else 0.0
        return start + (final - start) * SHAPES[shape](fraction)

    return weight
