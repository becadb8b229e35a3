"""A term's weight over the training."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmengine.logging import MessageHub

from mmsokd.checks import check_bool, check_choice, check_keys, check_number, is_factor, is_number

# How far a ramp is from its start (0) to its end (1), when a fraction of its time is over.
SHAPES: dict[str, Callable[[float], float]] = {
    'constant': lambda fraction: 0.0,
    'linear': lambda fraction: fraction,
    'cosine': lambda fraction: (1 - math.cos(math.pi * fraction)) / 2,
}


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
            dict of ``start`` (1), ``stop``, from which on the weight is 0, ``shape`` (``'constant'``, ``'linear'``,
            ``'cosine'``), and, for the last two shapes, ``final`` (0), ``begin`` and ``end`` of the ramp (the whole
            training). ``by_epoch`` (True) is the unit of the times.

    Raises:
        ValueError: none of these, knots out of order, a time that cannot be, or an option that has no effect. Times
            beyond the training, and epochs in a training that counts iterations, are found by its first step.

    Example:
        >>> warm_up = WeightSchedule('terms.loss_kd.loss_weight', [(0.0, 0.0), (0.1, 1.0)])
        >>> warm_up(Clock(5, 100)), warm_up(Clock(50, 100))
        (0.5, 1.0)
        >>> until = WeightSchedule('terms.loss_kd.loss_weight', dict(shape='constant', start=2.0, stop=8))
        >>> until(Clock(79, 120, 12)), until(Clock(80, 120, 12))
        (2.0, 0.0)
    """

    def __init__(self, key: str, value: Any) -> None:
        self._weight = _Ramp.parse(key, dict(value)) if isinstance(value, Mapping) else _Knots.parse(key, value)

    def __call__(self, clock: Clock) -> float:
        """The weight at ``clock``."""
        return self._weight.at(clock)

    @property
    def is_switch(self) -> bool:
        """Whether it is never anything but 0 and 1."""
        return self._weight.is_switch

    @property
    def highest(self) -> float:
        """The largest weight that it can give."""
        return self._weight.highest


class _Knots(NamedTuple):
    """Joined linearly."""

    knots: list[tuple[float, float]]  # (progress, weight)

    @classmethod
    def parse(cls, key: str, value: Any) -> '_Knots':
        try:
            knots = [(progress, weight) for progress, weight in ([(0.0, value)] if is_number(value) else value)]
        except (TypeError, ValueError):
            knots = []
        times = [progress for progress, _ in knots]
        good = all(is_number(time) and is_factor(weight) for time, weight in knots)
        if not times or not good or times != sorted(times) or not 0 <= times[0] <= times[-1] <= 1:
            raise ValueError(
                f'{key}: expected a number >= 0, [(progress, weight), ...] with progress rising within [0, 1], or '
                f"dict(shape='cosine', start=1.0, final=0.0), found {value!r}"
            )
        return cls(knots)

    def at(self, clock: Clock) -> float:
        before = [knot for knot in self.knots if knot[0] <= clock.progress] or self.knots[:1]
        after = [knot for knot in self.knots if knot[0] > clock.progress] or self.knots[-1:]
        (t0, w0), (t1, w1) = before[-1], after[0]
        return w0 if t1 <= t0 else w0 + (w1 - w0) * (clock.progress - t0) / (t1 - t0)

    @property
    def is_switch(self) -> bool:
        return {weight for _, weight in self.knots} in ({0.0}, {1.0})

    @property
    def highest(self) -> float:
        return max(weight for _, weight in self.knots)


class _Ramp(NamedTuple):
    """From ``start`` to ``final``, and gone from ``stop`` on."""

    key: str
    shape: str = 'constant'
    start: float = 1.0
    final: float = 0.0
    begin: float = 0
    end: float | None = None
    stop: float | None = None
    by_epoch: bool = True

    @classmethod
    def parse(cls, key: str, cfg: dict) -> '_Ramp':
        names = cls._fields[1:]
        check_keys(key, cfg, names)
        ramp = cls(key, **cfg)
        check_choice(f'{key}.shape', ramp.shape, SHAPES)
        check_bool(f'{key}.by_epoch', ramp.by_epoch)
        for name in ('start', 'final', 'begin', 'end', 'stop'):
            if name in cfg and (cfg[name] is not None or name not in ('end', 'stop')):
                check_number(f'{key}.{name}', cfg[name])
        idle = [name for name in ('final', 'begin', 'end') if cfg.get(name) is not None]
        if ramp.shape == 'constant' and idle:
            raise ValueError(
                f"{key}.{idle[0]}: expected it beside shape='linear' or 'cosine', found shape='constant', which it "
                "does not change; 'stop' ends a constant"
            )
        for name, time in dict(end=ramp.end, stop=ramp.stop).items():
            if time is not None and time <= ramp.begin:
                raise ValueError(f'{key}.{name}: expected a time after begin={ramp.begin}, found {time}')
        return ramp

    def at(self, clock: Clock) -> float:
        time, last = (clock.epoch, clock.max_epochs) if self.by_epoch else (clock.iter, clock.max_iters)
        self._check_times(last, clock.max_iters)
        if self.stop is not None and time >= self.stop:
            return 0.0
        length = (last if self.end is None else self.end) - self.begin
        fraction = min(max((time - self.begin) / length, 0.0), 1.0) if length > 0 else 0.0
        return self.start + (self.final - self.start) * SHAPES[self.shape](fraction)

    def _check_times(self, last: int, iters: int) -> None:
        """``last``: how long the training is, 0 without a Runner; ``iters``: the same in iterations."""
        latest = max(self.begin, self.end or 0, self.stop or 0)
        if self.by_epoch and last == 1 and latest > 0:
            # MMEngine's IterBasedTrainLoop calls itself one epoch: which loop this is, its message hub does not tell.
            times = {name: getattr(self, name) for name in ('begin', 'end', 'stop') if getattr(self, name)}
            write = ', '.join(f'{name}={round(time * iters)}' for name, time in times.items())
            raise ValueError(
                f'{self.key}: expected times in iterations (by_epoch=False) in a training of one epoch, as which an '
                f'iteration-based loop counts, found {latest} epochs'
                + (f'; for these parts of the {iters} iterations write {write}, by_epoch=False' if latest <= 1 else '')
            )
        if last and latest > last:
            unit = 'epochs' if self.by_epoch else 'iterations'
            raise ValueError(f'{self.key}: expected times within the training of {last} {unit}, found {latest}')

    @property
    def is_switch(self) -> bool:
        return self.shape == 'constant' and self.start in (0.0, 1.0)

    @property
    def highest(self) -> float:
        return self.start if self.shape == 'constant' else max(self.start, self.final)
