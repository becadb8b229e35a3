"""Show student, teacher and refined teacher features of some pictures side by side.

python tools/analysis/features.py work_dirs/my_sokd [--checkpoint epoch_12.pth] [--pictures 4] [--out features]

By the run's own config, its last checkpoint, and the first pictures of its validation.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _reading import import_own, one_message, read
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from rich.progress import track

from mmsokd.distillers import Distiller
from mmsokd.distillers.build import build_model, load_weights
from mmsokd.distillers.plugins import RefineStep
from mmsokd.visualization import loads_rgb, pictures_of
from mmsokd.visualization.charts import save
from mmsokd.visualization.features import features_figure

_TRIES = 100  # draws, until one changes something


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path, help='of a distillation')
    parser.add_argument('--checkpoint', type=Path, help='(default: the last one)')
    parser.add_argument('--pictures', type=int, default=4, help='how many')
    parser.add_argument('--out', type=Path, help='folder to write to (default: features in the work dir)')
    parser.add_argument('--trust-checkpoint', action='store_true', help='read it by pickle, which may run code in it')
    return parser.parse_args()


def build(cfg: Config, checkpoint: Path, trust: bool) -> Distiller:
    import_own(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = build_model('model', cfg.model, cfg.get('data_preprocessor'))
    if not isinstance(model, Distiller):
        raise ValueError(
            f'model.type: expected a distiller, whose features can be compared, found {type(model).__name__}'
        )
    load_weights('checkpoint', model, checkpoint, trust)
    return model.eval()


def last_checkpoint(folder: Path) -> Path:
    pointer = folder / 'last_checkpoint'
    if not pointer.is_file():
        raise ValueError(f'checkpoint: expected one in {str(folder)!r}, found no last_checkpoint; give --checkpoint')
    path = Path(pointer.read_text().strip())
    return path if path.is_file() else folder / path.name  # the work dir may have been moved


def draw_for(model: Distiller, inputs: torch.Tensor) -> tuple[RefineStep | None, str]:
    """The first draw of the policy in which an operation fires, and what it is."""
    if model.refine is None:
        return None, 'no refinement'
    for _ in range(_TRIES):
        step = model.refine.begin(inputs)
        if any(bool(draw.fires.any()) for draw in step.draws.values()):
            break
    return step, '; '.join(str(draw) for draw in step.draws.values())


def pictures_from(cfg: Config) -> Any:
    """The validation's data set, or the training's."""
    loader = cfg.get('val_dataloader') or cfg.train_dataloader
    dataset = DATASETS.build(loader['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return dataset


def main() -> None:
    args = parse_args()
    run = read(args.work_dir)
    out = args.out or args.work_dir / 'features'
    torch.manual_seed(0)
    with one_message():
        if args.pictures < 1:
            raise ValueError(f'--pictures: expected at least 1, found {args.pictures}')
        model = build(run.config, args.checkpoint or last_checkpoint(args.work_dir), args.trust_checkpoint)
        dataset = pictures_from(run.config)
        console = Console(stderr=True)
        numbers = range(min(args.pictures, len(dataset)))
        written = 0
        for i in track(numbers, 'features', console=console, disable=not console.is_terminal):
            data = model.data_preprocessor(pseudo_collate([dataset[i]]), False)
            inputs, samples = data['inputs'], data.get('data_samples')
            step, drawn = draw_for(model, inputs)
            (picture,) = pictures_of(inputs, model.data_preprocessor, samples, loads_rgb(dataset))
            for name, compared in model.compared_features(inputs, samples, step=step).items():
                strides = [(s.stride, t.stride) for s, t in model.terms[name].specs]
                save(features_figure(picture, compared, strides, 0, f'{name}: {drawn}'), out / f'{name}_{i}.png')
                written += 1
    if not written:
        raise SystemExit('terms: expected one that compares feature maps and has a weight, found none to show')
    print(f'{out}: {written} figures of {len(numbers)} pictures')


if __name__ == '__main__':
    main()
