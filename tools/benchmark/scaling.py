"""How a step's time and memory grow with the batch, the pictures, the areas, the terms and the ranks.

python tools/benchmark/scaling.py --case retinanet --axis batch_size areas --side 128 --width 0.25

For each axis, the exponent p of a fit ``size^p`` stands beside the floor's.
"""

import argparse
import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _cases import CASES, CONFIGS, Case, Teaching, Training, add_sizes, build, searching_step, student_alone
from _measure import MIB, Spread, Variant, add_rounds, clock_name, growth, markdown, memory, times, write
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel

# Three sizes of each: how many times the batch and the side of the case; and how many areas, terms and processes.
SIZES: dict[str, Sequence[float]] = dict(
    batch_size=(1, 2, 4), side=(1, 1.5, 2), areas=(4, 16, 64), terms=(1, 2, 4), ranks=(1, 2)
)
NAMES = ('floor', 'plain host', 'SoKD, searching')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--case', choices=[*CASES], default='retinanet', help='a pair of networks')
    parser.add_argument('--axis', nargs='+', choices=[*SIZES], default=[*SIZES], help='what is made larger')
    add_sizes(parser)
    add_rounds(parser, rounds=5, warm_up=1)
    return parser.parse_args()


def terms_of(path: str, count: int) -> dict[str, Any]:
    """The config's first term, ``count`` times."""
    term = next(iter(Config.fromfile(CONFIGS / path).model.terms.values()))
    return {f'loss_{i}': copy.deepcopy(term) for i in range(count)}


def trainings(case: Case, args: argparse.Namespace, side: int, batch_size: int, **sokd: Any) -> list[Training]:
    """The student alone, the plain host, and SoKD."""
    terms = {key: value for key, value in sokd.items() if key == 'terms'}
    plain = build(case.plain, args, side, batch_size, **terms)
    student = student_alone(plain, case.plain, args, side, batch_size)
    return [student, plain, build(case.sokd, args, side, batch_size, **sokd)]


def of_size(case: Case, args: argparse.Namespace, axis: str, size: float) -> dict[str, Variant]:
    """What is measured at one size of an axis; the floor is the student and its teacher, one after the other."""
    side, batch_size = args.side or case.side, args.batch_size or case.batch_size
    side, batch_size = (
        (round(side * size) if axis == 'side' else side),
        (round(batch_size * size) if axis == 'batch_size' else batch_size),
    )
    changes: dict[str, Any] = {}
    if axis == 'areas':
        changes['areas'] = dict(type='mmsokd.DistinctiveAreaDetector', num_areas=int(size))
    if axis == 'terms':
        changes['terms'] = terms_of(case.sokd, int(size))
    student, plain, sokd = trainings(case, args, side, batch_size, **changes)
    return dict(zip(NAMES, floor_and_steps(student, plain, sokd), strict=True))


def floor_and_steps(student: Training, plain: Training, sokd: Training) -> list[Variant]:
    teaching = Teaching(plain)

    def floor(given: tuple) -> None:
        student.step(given[0])
        teaching.to_the_tap(given[1])

    both = Variant(
        floor, lambda: (student.batch(), teaching.inputs()), lambda: student.resident() + teaching.resident()
    )
    return [both, plain.variant(), sokd.variant(searching_step(sokd, 'fused'))]


def one_process(case: Case, args: argparse.Namespace, axis: str) -> tuple[dict, dict]:
    """Seconds and bytes, name -> size -> runs."""
    seconds: dict[str, dict[float, list[float]]] = {name: {} for name in NAMES}
    held: dict[str, dict[float, list[int]]] = {name: {} for name in NAMES}
    for size in SIZES[axis]:
        variants = of_size(case, args, axis, size)
        found, memories = times(variants, args), memory(variants, 1)
        for name in NAMES:
            seconds[name][size], held[name][size] = found[name], memories[name].total
    return seconds, held


# ---- several processes ----------------------------------------------------------------------------------------------


def several_processes(case: Case, args: argparse.Namespace) -> tuple[dict, dict]:
    """Seconds of a rank's step; its own work, where the clock is a processor's: waiting for others costs none."""
    seconds: dict[str, dict[float, list[float]]] = {name: {} for name in NAMES}
    for size in SIZES['ranks']:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (int(size), folder, case, args), nprocs=int(size))
            for name, own in torch.load(Path(folder) / 'seconds.pth').items():
                seconds[name][size] = own
    return seconds, {name: {} for name in NAMES}


def _rank(rank: int, ranks: int, folder: str, case: Case, args: argparse.Namespace) -> None:
    cuda = torch.cuda.is_available()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    if cuda:
        torch.cuda.set_device(rank)
    torch.set_num_threads(args.threads)
    store = f'file://{folder}/store'
    torch.distributed.init_process_group('nccl' if cuda else 'gloo', store, rank=rank, world_size=ranks)
    side, batch_size = args.side or case.side, args.batch_size or case.batch_size
    student, plain, sokd = trainings(case, args, side, batch_size)
    variants = floor_and_steps(student, plain, sokd)
    for training in (student, plain, sokd):
        wrapped = MMDistributedDataParallel(
            training.model, device_ids=[rank] if cuda else None, broadcast_buffers=False
        )
        training.model = wrapped
    found = times(dict(zip(NAMES, variants, strict=True)), args)
    if rank == 0:
        torch.save(found, Path(folder) / 'seconds.pth')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# ---- the tables -----------------------------------------------------------------------------------------------------


def table(found: dict[str, dict[float, list[float]]], unit: float, digits: int) -> str:
    """A row each: the median at every size, and the exponent beside the floor's."""
    sizes = [*next(iter(found.values()))]
    rows = []
    for name, own in found.items():
        middles = [Spread.of(own[size]).middle for size in sizes]
        rows.append([name, *(f'{m / unit:.{digits}f}' for m in middles), f'{growth(sizes, middles):.2f}'])
    return markdown(['step', *(f'{size:g}' for size in sizes), 'exponent'], rows)


def main() -> None:
    args = parse_args()
    figures: dict[str, Any] = {}
    case = CASES[args.case]
    for axis in args.axis:
        seconds, held = several_processes(case, args) if axis == 'ranks' else one_process(case, args, axis)
        print(f'\n{args.case}, {axis}; ms, {clock_name(args.wall)}\n\n{table(seconds, 1e-3, 1)}', flush=True)
        if axis != 'ranks':
            print(f'\npeak MiB\n\n{table(held, MIB, 0)}', flush=True)
        figures[axis] = dict(seconds=seconds, bytes=held)
    write(args.json, figures)


if __name__ == '__main__':
    main()
