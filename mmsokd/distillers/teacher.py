"""The teacher's guard: frozen, in eval, run to its deepest tap, and part of nothing that is saved."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from mmsokd.checks import check_bool, check_choice, check_keys
from mmsokd.distillers.build import build_model, load_weights
from mmsokd.distillers.cache import TeacherCache, identity
from mmsokd.distillers.trimming import let_go
from mmsokd.taps import FeatureTap, Probe, Tap, dry_inputs, probe, run_for_taps

_INDUCTOR = 'inductor'  # PyTorch's own backend, and the default
PACE = ('autocast', 'channels_last', 'compile', 'stream', 'trim')


class Normalization(NamedTuple):
    """How a data preprocessor maps pixels to inputs: ``(pixel - mean) / std``; ``flip`` swaps BGR and RGB before.

    ``pad`` stands around smaller pictures of a batch, whose sides are multiples of ``divisor``; it is not normalised.
    """

    mean: Tensor  # (3 or 1, 1, 1)
    std: Tensor
    flip: bool
    pad: float
    divisor: int

    @classmethod
    def of(cls, preprocessor: nn.Module | None) -> 'Normalization':
        """Read it off a preprocessor of mmengine, mmdet, mmseg or mmpretrain, which name the same thing three ways."""
        flip = any(
            getattr(preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion', 'to_rgb')
        )
        pad = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
        if not getattr(preprocessor, '_enable_normalize', False):
            return cls(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), flip, pad, _divisor(preprocessor))
        return cls(preprocessor.mean.cpu().clone(), preprocessor.std.cpu().clone(), flip, pad, _divisor(preprocessor))

    def check(self, key: str) -> None:
        """Raise ValueError unless inputs can be made from other inputs by it."""
        real = self.mean.shape == self.std.shape and not (self.mean.is_complex() or self.std.is_complex())
        if not real or not (self.mean.isfinite() & self.std.isfinite() & (self.std > 0)).all():
            mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
            raise ValueError(f'{key}: expected a mean and a std > 0 a channel, found mean={mean} and std={std}')

    def sizes(self, inputs: Tensor, data_samples: Iterable | None) -> list[tuple[int, int]]:
        """Height and width of each picture in the upper left of the batch ``inputs`` (N, C, H, W); the rest is padding.

        ``img_shape`` tells them where the preprocessor pads: mmdet's and mmseg's say so by ``pad_shape``; others have a
        divisor, or the largest sides are the batch's. Elsewhere it may be what some transform has left behind, and
        the picture fills the batch.
        """
        samples = list(data_samples or [])
        batch = tuple(inputs.shape[-2:])
        sizes = [tuple(sample.metainfo.get('img_shape', batch)[:2]) for sample in samples]
        if self.divisor > 1 or all('pad_shape' in sample.metainfo for sample in samples):
            return sizes
        return sizes if tuple(map(max, zip(*sizes, strict=True))) == batch else [batch] * len(samples)

    def same(self, other: 'Normalization') -> bool:
        """Whether both give the same inputs inside the pictures."""
        return (
            self.flip == other.flip
            and bool((self.mean - other.mean).abs().max() < 1e-4)
            and bool((self.std - other.std).abs().max() < 1e-4)
        )


def check_no_pace(key: str, source: Any) -> None:
    """Raise ValueError where ``source`` says how a frozen teacher is to be run, of one that is trained."""
    given = source if isinstance(source, Mapping) and 'type' not in source else {}
    for name in PACE:
        if name in given:
            raise ValueError(
                f'{key}.{name}: expected none, which is for a frozen teacher; this one is trained as the student is, '
                f'found {given[name]!r}'
            )


class Pace:
    """How a teacher is run, as its config says: nothing of it is on by default.

    Args:
        key: the teacher's, for messages.
        autocast: ``'bfloat16'`` or ``'float16'``, for the teacher alone; its features come back in the batch's dtype.
            None: as the student.
        channels_last: its convolutions see maps in that memory format; its features come back in the usual one.
        compile: True, or ``backend``, ``mode``, ``options`` and ``dynamic`` of ``torch.compile``; for the teacher
            alone.
        stream: on a GPU, run it on a CUDA stream of its own, beside the student's forward; elsewhere nothing changes.
        trim: let go of the parts that no tap needs, such as its head, and of their memory.

    Raises:
        ValueError: a value is none of these.
    """

    def __init__(
        self,
        key: str,
        autocast: str | None = None,
        channels_last: bool = False,
        compile: bool | Mapping = False,
        stream: bool = False,
        trim: bool = False,
    ) -> None:
        check_choice(f'{key}.autocast', autocast, [None, 'bfloat16', 'float16'])
        check_bool(f'{key}.channels_last', channels_last)
        check_bool(f'{key}.stream', stream)
        check_bool(f'{key}.trim', trim)
        if not isinstance(compile, Mapping):
            check_bool(f'{key}.compile', compile)
        self.dtype = getattr(torch, autocast) if autocast else None
        self.channels_last = channels_last
        self.stream = stream
        self.trim = trim
        self.run = run_for_taps
        if compile is not False:
            self.run = _compiled(f'{key}.compile', compile if isinstance(compile, Mapping) else {})
        self._side: Any = None

    def autocast(self, device: str) -> AbstractContextManager:
        """Around the teacher's forward."""
        return torch.autocast(device, self.dtype) if self.dtype is not None else nullcontext()

    @contextmanager
    def aside(self, inputs: Tensor) -> Iterator[None]:
        """Within, kernels go to the stream, behind those that made ``inputs``; :meth:`join` waits for them."""
        if not (self.stream and inputs.is_cuda):
            yield
            return
        self._side = self._side or torch.cuda.Stream(inputs.device)
        self._side.wait_stream(torch.cuda.current_stream(inputs.device))
        with torch.cuda.stream(self._side):
            yield
        inputs.record_stream(self._side)

    def join(self, feats: Iterable[Tensor]) -> None:
        """Let the current stream wait for ``feats``, and their memory live until that is done with it."""
        if self._side is None:
            return
        for feat in feats:
            current = torch.cuda.current_stream(feat.device)
            current.wait_stream(self._side)
            feat.record_stream(current)


def _compiled(key: str, options: Mapping) -> Callable:
    """``run_for_taps``, compiled.

    ``torch.compile`` looks at most of its arguments in the first step alone, so that they are looked at here. There is
    no ``fullgraph``: between the networks' parts stands what is not compiled.

    Raises:
        ValueError: ``torch.compile`` does not take ``options``.
    """
    check_keys(key, options, ['backend', 'mode', 'options', 'dynamic'])
    backend = options.get('backend', _INDUCTOR)
    if not (isinstance(backend, str) or inspect.isroutine(backend)):
        raise ValueError(f'{key}.backend: expected the name of a backend, or a function, found {backend!r}')
    for name in ('mode', 'options'):
        if options.get(name) is not None and backend != _INDUCTOR:
            raise ValueError(
                f"{key}.{name}: expected none beside a backend other than '{_INDUCTOR}', found {options[name]!r}"
            )
    check_choice(f'{key}.dynamic', options.get('dynamic'), [None, True, False])
    try:
        return torch.compile(run_for_taps, **options)
    except Exception as error:  # each of its parts raises what it likes
        raise ValueError(f'{key}: expected arguments of torch.compile, found {dict(options)!r}: {error}') from error


class Teacher:
    """A frozen model and the taps read from it. Not a module: nothing of it reaches the state dict, the optimizer, or
    (through deepcopy) an EMA copy, which shares it.

    Args:
        name: its name in the config, for messages.
        source: ``dict(cfg=..., checkpoint=..., trust_checkpoint=False)`` with :class:`Pace`'s keys, or whatever
            :func:`~mmsokd.distillers.build.build_model` takes. An inline model's own
            ``init_cfg=dict(type='Pretrained', checkpoint=...)`` counts as its checkpoint.
        data_preprocessor: for an inline model that has none of its own.

    Raises:
        ValueError, FileNotFoundError, TypeError: as building and loading do.
    """

    frozen: ClassVar[bool] = True

    def __init__(self, name: str, source: Any, data_preprocessor: dict | None = None) -> None:
        self.name = name
        given = source if isinstance(source, dict) and 'type' not in source else {}
        checkpoint, trust = given.get('checkpoint'), given.get('trust_checkpoint', False)
        check_bool(f'{name}.trust_checkpoint', trust)
        self.module = build_model(name, source, data_preprocessor)
        init_cfg = getattr(self.module, 'init_cfg', None)
        pretrained = isinstance(init_cfg, dict) and init_cfg.get('type') in (
            'Pretrained',
            'PretrainedInit',
            PretrainedInit,
        )
        if checkpoint is None and pretrained and not isinstance(source, nn.Module):
            checkpoint = init_cfg['checkpoint']
        if checkpoint is not None:
            load_weights(f'{name}.checkpoint', self.module, checkpoint, trust)
        elif self.frozen and not isinstance(source, nn.Module):
            print_log(f'{name}: no checkpoint is given, so its weights are random', 'current', logging.WARNING)
        self.has_weights = checkpoint is not None
        if self.frozen:
            self.module.requires_grad_(False).eval()
        self.pace = Pace(name, **{key: value for key, value in given.items() if key in PACE})
        if self.pace.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.taps: list[Tap] = []
        self.cache: TeacherCache | None = None
        self._ears: dict[tuple[Tap, ...], FeatureTap] = {}
        self._renorm: tuple[Tensor, Tensor] | None = None
        self._flip = False
        self._pad: float | None = None
        self._sizes: Callable | None = None

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self

    def probe(
        self, taps: Iterable[Tap], size: int, at: str | None = None, keys: Mapping[Tap, str] | None = None
    ) -> Probe:
        """Dry-run for ``taps``, which :meth:`features` will read from now on, and for what follows the layer ``at``.

        See :func:`~mmsokd.taps.probe`.
        """
        self.taps = list(dict.fromkeys(taps))
        self._probe = probe(self.module, self.taps, size, at, keys)
        self._ears.clear()
        return self._probe

    @torch.compiler.disable
    def _ear(self, taps: tuple[Tap, ...]) -> FeatureTap:
        """Stops after the deepest of ``taps``; kept, since the terms that are alive change seldom."""
        if taps not in self._ears:
            self._ears[taps] = FeatureTap(self.module, taps, self._probe.calls, self._probe.overwritten)
        return self._ears[taps]

    @torch.no_grad()
    def trim(self, size: int) -> None:
        """Let go of the parts that no tap needs, by a dry run on a picture of this side, in pixels."""

        def run() -> None:
            with torch.random.fork_rng(devices=[]), self._ear(tuple(self.taps)).replacing(None):
                run_for_taps(self.module, self.taps, *dry_inputs(self.module, size))

        gone = let_go(self.module, run, self.name)
        self.module.eval()
        if gone:
            print_log(f'{self.name}: no tap needs {", ".join(gone)}', 'current')

    def match_normalization(self, student: nn.Module | None) -> None:
        """Re-normalise each batch, and fill its padding, where ``student``, its data preprocessor, differs from ours.

        A teacher that configures none takes the student's inputs as they are.

        Raises:
            ValueError: one of them divides by zero, or by what is no number.
        """
        own = getattr(self.module, 'data_preprocessor', None)
        if not hasattr(own, '_enable_normalize'):
            return
        ours = Normalization.of(own)
        theirs = Normalization.of(student)
        ours.check(f'{self.name}.data_preprocessor')
        theirs.check('student.data_preprocessor')
        if not ours.same(theirs) or ours.pad != theirs.pad:
            self._pad, self._sizes = ours.pad, theirs.sizes
        if ours.same(theirs):
            return
        self._flip = ours.flip != theirs.flip
        mean, std = (theirs.mean.flip(0), theirs.std.flip(0)) if self._flip else (theirs.mean, theirs.std)
        self._renorm = (std / ours.std, (mean - ours.mean) / ours.std)
        print_log(f"{self.name}: its normalization differs from the student's; batches are re-normalised", 'current')

    def match_padding(self, student: nn.Module | None, size: int) -> None:
        """Look whether this model runs on the sides that ``student``, its data preprocessor, pads pictures to.

        A feature pyramid does at any side; one that doubles its maps needs multiples of its own ``pad_size_divisor``.
        Padding for the teacher alone would give its maps other sizes.

        Args:
            student: the student's data preprocessor.
            size: of the first dry run, in pixels.

        Raises:
            ValueError: it does not; names both divisors.
        """
        size_of_all = getattr(student, 'size', None)  # mmseg's
        sides = size_of_all if isinstance(size_of_all, list | tuple) else [size_of_all]
        if size_of_all and not all(isinstance(side, int) for side in sides):
            raise ValueError(f'student.data_preprocessor.size: expected (height, width), found {size_of_all!r}')
        theirs = math.gcd(*sides) if size_of_all else _divisor(student)
        ours = _divisor(getattr(self.module, 'data_preprocessor', None))
        if theirs % ours == 0:
            return
        try:
            probe(self.module, self.taps, ours * max(1, size // ours) + theirs)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.name}: expected pictures with sides of multiples of {ours}, its data preprocessor's "
                f"pad_size_divisor, found {theirs} in the student's; give the student's a multiple of {ours}"
            ) from error

    @torch.compiler.disable
    def prepare(self, inputs: Tensor, data_samples: list | None) -> Tensor:
        """The student's preprocessed batch (N, 3, H, W) as this teacher's own preprocessor would have made it.

        In every OpenMMLab library the padding is added after normalisation.
        """
        if self._pad is None:
            return inputs
        out = inputs
        if self._renorm is not None:
            self._renorm = scale, shift = tuple(x.to(inputs.device, non_blocking=True) for x in self._renorm)
            out = (inputs.flip(1) if self._flip else inputs) * scale + shift
        height, width = inputs.shape[-2:]
        shapes = self._sizes(inputs, data_samples)
        if all(shape == (height, width) for shape in shapes):
            return out
        limits = torch.tensor(shapes).to(inputs.device, non_blocking=True)  # (N, 2)
        rows = torch.arange(height, device=inputs.device) < limits[:, :1]
        columns = torch.arange(width, device=inputs.device) < limits[:, 1:]
        image = rows[:, None, :, None] & columns[:, None, None, :]  # (N, 1, H, W)
        return out.masked_fill(~image, self._pad)

    def make_ready(self, device: torch.device) -> None:
        """Bring the module to ``device``, and into eval mode."""
        # Moved lazily: the distiller's .to() must not reach a teacher that an EMA copy on another device shares.
        parameter = next(self.module.parameters(), None)
        if parameter is not None and parameter.device != device:
            self.module.to(device)
        if any(module.training for module in self.module.modules()):
            self.module.eval()  # a teacher that drops units is another teacher

    def open_cache(self, folder: Path, dtype: str, capacity: int, hint: str, device: torch.device) -> None:
        """Keep what :meth:`features` gives of training pictures in ``folder``; see :class:`TeacherCache`.

        It is called as the steps will be: within the training's autocast.
        """
        one = torch.ones(1, 1, device=device)
        with self.pace.autocast(device.type):
            about = dict(identity(self.module), autocast=str((one @ one).dtype))  # the training's, or its own
        self.cache = TeacherCache(self.name, folder, about, self.taps, dtype, capacity, hint)

    def close_cache(self) -> None:
        """Run for every picture again."""
        if self.cache is not None:
            self.cache.close()
        self.cache = None

    @torch.no_grad()
    def features(
        self,
        inputs: Tensor,
        data_samples: list | None,
        replace: Mapping[str, Callable[[Any], Any]] | None = None,
        taps: Iterable[Tap] | None = None,
        training: bool = False,
    ) -> dict[str, list[Tensor]]:
        """The levels of ``taps``, by default of all, on a batch that the *student's* preprocessor made.

        ``replace`` puts another output in the place of a layer's (SoKD's ``at``). In ``training`` a cache is asked
        first, where there is one.
        """
        taps = tuple(self.taps if taps is None else taps)
        with self.pace.aside(inputs):
            inputs, caller = self.prepare(inputs, data_samples), inputs.dtype
            if not training or self.cache is None:
                return self._run(inputs, data_samples, caller, replace, taps)
            run = partial(self._run, caller=caller, replace=None, taps=tuple(self.taps))
            found = self.cache.features(inputs, data_samples, run)
            return {tap: found[tap] for tap in taps}

    def _run(
        self,
        inputs: Tensor,
        data_samples: list | None,
        caller: torch.dtype,
        replace: Mapping[str, Callable[[Any], Any]] | None,
        taps: tuple[Tap, ...],
    ) -> dict[str, list[Tensor]]:
        """The same for a batch that :meth:`prepare` made of one of the dtype ``caller``."""
        self.make_ready(inputs.device)
        parameter = next(self.module.parameters(), None)
        other = parameter is not None and parameter.dtype != caller
        if other:  # a student cast as a whole; the weights stay as they are, since copies share them
            inputs = inputs.to(parameter.dtype)
        if self.pace.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.pace.autocast(inputs.device.type), self._ear(taps).replacing(replace) as feats:
            self.pace.run(self.module, taps, inputs, data_samples)
        if self.pace.channels_last:  # what the student's side does with two layouts at once is slow
            feats = {tap: [x.contiguous() for x in feats[tap]] for tap in taps}
        cast = other or self.pace.dtype is not None
        return {tap: [x.to(caller) if cast else x for x in feats[tap]] for tap in taps}


def _divisor(preprocessor: nn.Module | None) -> int:
    """What the sides of a data preprocessor's batches are multiples of."""
    return getattr(preprocessor, 'pad_size_divisor', None) or getattr(preprocessor, 'size_divisor', None) or 1
