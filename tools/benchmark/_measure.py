"""What the benchmarks share: the clock, rounds in turns, peak memory, and tables."""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

MIB = 2**20


class Variant(NamedTuple):
    """One of the things that are compared.

    ``run`` takes what ``prepare`` gives, which is not measured; ``resident`` are the bytes that lie there between two
    runs, such as weights and an optimizer's state.
    """

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    resident: Callable[[], int] = lambda: 0


def add_rounds(parser: Any, rounds: int = 20, warm_up: int = 3) -> None:
    """The flags of how often, how, and where to."""
    parser.add_argument('--rounds', type=int, default=rounds, help='runs of each that count')
    parser.add_argument('--warm-up', type=int, default=warm_up, help='runs of each before them')
    parser.add_argument('--threads', type=int, default=1, help='of a CPU')
    parser.add_argument('--wall', action='store_true', help='wall time on a CPU too, for a machine that is idle')
    parser.add_argument('--json', type=Path, help='write all figures there')


def clock_name(wall: bool = False) -> str:
    """What :func:`seconds` measures, in words."""
    if torch.cuda.is_available():
        return f'device time by CUDA events, {torch.cuda.get_device_name()}'
    threads = torch.get_num_threads()
    return f'{"wall" if wall else "processor"} time of a CPU, {threads} thread{"s" if threads > 1 else ""}'


def seconds(run: Callable[[Any], Any], argument: Any = None, wall: bool = False) -> float:
    """What one run takes: on a CPU processor time, or wall time; on a GPU between two events on its stream.

    There is no wait inside: a GPU is idle before the first event, and is waited for behind the last.
    """
    if not torch.cuda.is_available():
        clock = time.perf_counter if wall else time.process_time
        start = clock()
        run(argument)
        return clock() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run(argument)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def in_turns(
    variants: Mapping[str, Variant], rounds: int, warm_up: int, measure: Callable[[Callable[[Any], Any], Any], float]
) -> dict[str, list[float]]:
    """Round by round one run of each, so that whatever slows the machine down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    console = Console(stderr=True)
    turns = track(range(warm_up + rounds), 'rounds', console=console, disable=not console.is_terminal)
    for turn in turns:
        for name, variant in variants.items():
            value = measure(variant.run, variant.prepare())
            if turn >= warm_up:
                found[name].append(value)
    return found


def times(variants: Mapping[str, Variant], args: Any) -> dict[str, list[float]]:
    """Seconds of each run, by the flags of :func:`add_rounds`."""
    torch.set_num_threads(args.threads)
    return in_turns(
        variants, args.rounds, args.warm_up, lambda run, argument: seconds(run, argument, getattr(args, 'wall', False))
    )


def repeated(variant: Variant, least: float) -> tuple[Variant, int]:
    """As many runs in a row as take about ``least`` seconds, and their number.

    One run of less than a millisecond tells of the clock, and of caches that something else has filled.
    """
    variant.run(variant.prepare())
    count = max(1, math.ceil(least / seconds(variant.run, variant.prepare(), wall=True)))

    def run(arguments: list) -> None:
        for argument in arguments:
            variant.run(argument)

    return Variant(run, lambda: [variant.prepare() for _ in range(count)], variant.resident), count


class Memory(NamedTuple):
    """Bytes of what lies there all the time, and of the highest moment of each run, above that."""

    resident: int
    peaks: list[int]

    @property
    def total(self) -> list[int]:
        """Both together, run by run."""
        return [self.resident + peak for peak in self.peaks]


def memory(variants: Mapping[str, Variant], rounds: int) -> dict[str, Memory]:
    """What each needs, once it has run for :func:`times`."""
    found = in_turns(variants, rounds, 0, peak_bytes)
    return {name: Memory(variants[name].resident(), own) for name, own in found.items()}


def peak_bytes(run: Callable[[Any], Any], argument: Any = None) -> int:
    """The most that PyTorch's allocator holds during one run, above what it held before.

    On a GPU the caching allocator tells. On a CPU it is summed up from the profiler's record of each allocation, which
    is exact and the same on every machine, where a process's resident size tells more of the C library's free lists.
    What oneDNN allocates for itself, such as weights in its own layout, is in neither.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(argument)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(argument)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    allocations = [event for event in events if event.get('name') == '[memory]']
    held = highest = 0
    for event in sorted(allocations, key=lambda event: event['ts']):
        held += event['args']['Bytes']
        highest = max(highest, held)
    return highest


def operations(variant: Variant, rounds: int) -> dict[str, float]:
    """Operation -> seconds that a run spends in it alone, by the profiler; on a GPU the device's."""
    kind = torch.profiler.ProfilerActivity
    cuda = torch.cuda.is_available()
    arguments = [variant.prepare() for _ in range(rounds)]
    with torch.profiler.profile(activities=[kind.CPU, *([kind.CUDA] if cuda else [])]) as profile:
        for argument in arguments:
            variant.run(argument)
    names = ('self_device_time_total', 'self_cuda_time_total') if cuda else ('self_cpu_time_total',)
    return {
        event.key: next(getattr(event, name) for name in names if hasattr(event, name)) / 1e6 / rounds
        for event in profile.key_averages()
    }


def bytes_of(*parts: nn.Module | Mapping | Tensor | Sequence) -> int:
    """Of the tensors in modules, optimizers' states and lists; each counts once."""
    return sum({x.data_ptr(): x.numel() * x.element_size() for x in _tensors(parts)}.values())


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


class Spread(NamedTuple):
    """The median and the middle half."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """Of one value, that value."""
        return cls(*(statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3))

    def text(self, unit: float = 1.0, digits: int = 2) -> str:
        """As ``median (low - high)``, in parts of ``unit``."""
        low, middle, high = (f'{value / unit:.{digits}f}' for value in self)
        return middle if low == high else f'{middle} ({low} - {high})'


def ratios(own: Sequence[float], base: Sequence[float]) -> Spread:
    """Of two things that were measured in the same rounds."""
    return Spread.of([a / b for a, b in zip(own, base, strict=True)])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))


def write(path: Path | None, figures: Any) -> None:
    """As JSON, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1))


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of the least squares fit ``value = c size^p``."""
    logs = torch.tensor([sizes, values], dtype=torch.float64).log()
    x, y = logs - logs.mean(1, keepdim=True)
    return float((x * y).sum() / (x * x).sum())
