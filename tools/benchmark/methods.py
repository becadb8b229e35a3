"""Compare the training steps of several configs with the first one's, in turns and in one process.

python tools/benchmark/methods.py configs/classification/tin100/{kd,tst_kd}_resnet32x4-resnet8x4_4e_tin100.py --side 32

Weights and pictures are random; each step is the whole of ``train_step``: forward, backward, optimizer. A config with
SoKD's search has two rows, while it searches and afterwards. A CPU's figures are its processor time, by one thread
unless ``--threads`` says otherwise, since wall time tells as much of what else runs there.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import track

from mmsokd.distillers.build import build_model
from mmsokd.distillers.rehearsal import blank_samples


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', help='the first one is what the others are compared with')
    parser.add_argument('--batch-size', type=int, default=16, help='pictures a step')
    parser.add_argument('--side', type=int, default=224, help='of the pictures, in pixels')
    parser.add_argument('--rounds', type=int, default=20, help='steps of each that count')
    parser.add_argument('--warm-up', type=int, default=3, help='steps of each before them')
    parser.add_argument('--threads', type=int, default=1, help='of a CPU')
    parser.add_argument('--json', type=Path, help='write the times of all steps there')
    return parser.parse_args()


def steps_of(path: str, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Name -> a training step of the config, searching and not."""
    cfg = Config.fromfile(path)
    if 'model' not in cfg or 'optim_wrapper' not in cfg:
        raise SystemExit(f'{path}: expected a config to train, with a model and an optim_wrapper, found {[*cfg]}')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for part in [cfg.model.get('teacher'), *cfg.model.get('teachers', {}).values()]:
        if part:
            part.pop('checkpoint', None)
    torch.manual_seed(0)
    model = build_model('model', cfg.model, cfg.get('data_preprocessor')).to(get_device()).train()
    # SFTNTeacherTrainer trains its teacher
    student = next((getattr(model, name) for name in ('student', 'teacher') if hasattr(model, name)), model)
    samples = blank_samples(student, args.side)
    if samples is None:
        raise SystemExit(f'{path}: expected a student of mmdet, mmseg or mmpretrain, found {type(student).__name__}')
    pictures = [torch.randint(0, 256, (3, args.side, args.side), dtype=torch.uint8) for _ in range(args.batch_size)]
    batch = dict(inputs=pictures, data_samples=(samples * args.batch_size)[: args.batch_size])
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    necks = list(model.refine.necks.values()) if getattr(model, 'refine', None) is not None else []

    def step(searching: bool) -> None:
        for neck in necks:
            neck.searching = searching
        model.train_step(copy.deepcopy(batch), wrapper)
        for neck in necks:
            neck.pop_gradient()

    name = Path(path).stem
    if not necks:
        return {name: lambda: step(False)}
    return {f'{name}, searching': lambda: step(True), name: lambda: step(False)}


def seconds(step: Callable[[], Any]) -> float:
    """What one step takes: on a CPU processor time, on a GPU wall time until it is idle."""
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    step()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def table(times: dict[str, list[float]]) -> str:
    """Median, and the middle half, of the times and of the ratios to the first one's step of the same round."""
    base = next(iter(times.values()))
    lines = ['| step | ms | times the first | middle half |', '|---|---|---|---|']
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        lines.append(f'| {name} | {1000 * statistics.median(own):.1f} | {middle:.2f} | {low:.2f} - {high:.2f} |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    steps: dict[str, Callable[[], Any]] = {}
    for path in args.configs:
        new = steps_of(path, args)
        if twice := steps.keys() & new.keys():
            raise SystemExit(f'{path}: expected another file name than that of a config before it, found {twice}')
        steps.update(new)
    times: dict[str, list[float]] = {name: [] for name in steps}
    console = Console(stderr=True)
    turns = range(args.warm_up + args.rounds)
    for turn in track(turns, 'rounds', console=console, disable=not console.is_terminal):
        for name, step in steps.items():
            took = seconds(step)
            if turn >= args.warm_up:
                times[name].append(took)
    print(table(times))
    if args.json:
        args.json.write_text(json.dumps(times))


if __name__ == '__main__':
    main()
