"""Compare the training steps of several configs with the first one's, in turns and in one process.

python tools/benchmark/methods.py configs/classification/tin100/{kd,tst_kd}_resnet32x4-resnet8x4_4e_tin100.py --side 32

Weights and pictures are random, and the same in every run; each step is the whole of ``train_step``: forward, backward,
optimizer. The rounds, with those to warm up, are the whole of a training: what changes in its course, such as a weight
or a probability, goes from its start to its end, so that the mean over the rounds is the training's. A config with
SoKD's search has two rows, while it searches and afterwards; one with Meta-KD's refiner has its hook's extra passes as
often as the config says, of which the mean tells. A CPU's figures are its processor time, by one thread unless
``--threads`` says otherwise, since wall time tells as much of what else runs there.
"""

import argparse
import statistics
from pathlib import Path

import torch
from _cases import Training, add_sizes, load, meta_step, searching_step
from _measure import Spread, Variant, add_rounds, markdown, ratios, times, write

from mmsokd.distillers.build import build_model
from mmsokd.registry import HOOKS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', help='the first one is what the others are compared with')
    add_sizes(parser)
    add_rounds(parser)
    parser.set_defaults(side=224, batch_size=16)
    return parser.parse_args()


def variants_of(path: str, args: argparse.Namespace) -> dict[str, Variant]:
    """Name -> a training step of the config, searching and not."""
    cfg = load(path, args.width)
    torch.manual_seed(0)
    model = build_model('model', cfg.model, cfg.get('data_preprocessor'))
    # SFTNTeacherTrainer trains its teacher
    student = next((getattr(model, name) for name in ('student', 'teacher') if hasattr(model, name)), model)
    name = Path(path).stem
    refiner = getattr(model, 'refine', None)
    searches = bool(refiner and refiner.policies)
    iters = (args.rounds + args.warm_up) * (2 if searches else 1)
    epochs = cfg.get('train_cfg', {}).get('max_epochs', 1)
    training = Training(model, cfg.optim_wrapper, args.side, args.batch_size, args.amp, student, iters, epochs)
    if refiner is not None and not searches:
        (hook,) = [hook for hook in cfg.custom_hooks if hook.type == 'mmsokd.MetaRefineHook']
        return {name: training.variant(meta_step(training, HOOKS.build(hook)))}
    if not searches:
        return {name: training.variant()}
    steps = {f'{name}, searching': 'fused', name: None}
    return {key: training.variant(searching_step(training, mode)) for key, mode in steps.items()}


def table(seconds: dict[str, list[float]]) -> str:
    """Median and middle half of times and of ratios to the first one in the same round; the ratio of the means."""
    base = next(iter(seconds.values()))
    rows = []
    for name, own in seconds.items():
        mean = statistics.mean(own) / statistics.mean(base)
        rows.append([name, Spread.of(own).text(1e-3, 1), ratios(own, base).text(), f'{mean:.2f}'])
    return markdown(['step', 'ms', 'times the first', 'in the mean'], rows)


def main() -> None:
    args = parse_args()
    steps: dict[str, Variant] = {}
    for path in args.configs:
        new = variants_of(path, args)
        if twice := steps.keys() & new.keys():
            raise SystemExit(f'{path}: expected another file name than that of a config before it, found {twice}')
        steps.update(new)
    seconds = times(steps, args)
    print(table(seconds))
    write(args.json, seconds)


if __name__ == '__main__':
    main()
