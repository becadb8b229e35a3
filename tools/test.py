"""Test a student: by a distiller's config or by its own, with a distiller's checkpoint or with an exported one.

Testing takes the student's weights alone, so each of the four combinations does; so it is with the teacher that SFTN
trains. They are loaded strictly: a checkpoint of another model is an error here, and no AP of 0.
"""

import argparse
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from _cli import build_runner, load_config, make_parser
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

import mmsokd  # noqa: F401  registers the scope
from mmsokd.checkpoint import load_checkpoint as read_checkpoint
from mmsokd.distillers.face import Face
from mmsokd.export import export_part, load_student

# What mmdet's and mmpretrain's own tools/test.py do where the config has no tta_model: average over flips.
FLIP_TTA = {
    'mmdet': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmpretrain': dict(type='mmpretrain.AverageClsScoreTTA'),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='file (.pkl) for the predictions; with mmseg, a folder for label maps')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which --show shows each')
    parser.add_argument('--tta', action='store_true', help='test time augmentation')
    return parser.parse_args()


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the visualization hook, which each library spells in its own way."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit("--show: expected 'visualization' among the config's default_hooks, found none")
    scope = cfg.get('default_scope')
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    hook.update(show=args.show, wait_time=args.wait_time)
    if args.show_dir and scope == 'mmseg':
        cfg.visualizer['save_dir'] = args.show_dir
    elif args.show_dir:
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = args.show_dir


def augment_tests(cfg: Config) -> None:
    """Wrap the model and the pipeline of the test data for test time augmentation."""
    scope = cfg.get('default_scope')
    dataset = cfg.test_dataloader.dataset
    if 'tta_model' not in cfg:
        if scope not in FLIP_TTA:
            raise SystemExit("--tta: expected 'tta_model' and 'tta_pipeline' in the config, found none")
        cfg.tta_model = FLIP_TTA[scope]
    if 'tta_pipeline' not in cfg:
        *pipeline, pack = deepcopy(dataset.pipeline)
        if scope == 'mmdet':  # merging needs to know what was flipped
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
            pack = dict(type='PackDetInputs', meta_keys=keys)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*pipeline, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def keep_predictions(cfg: Config, out: str) -> DumpResults | None:
    """A metric that writes the predictions to ``out``; with mmseg its own metric does."""
    scope = cfg.get('default_scope')
    if scope == 'mmseg':
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
        return None
    if not out.endswith(('.pkl', '.pickle')):
        raise SystemExit(f'--out: expected a file that ends with .pkl or .pickle, found {out!r}')
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=out)
    return DumpResults(out_file_path=out)


def trained_of(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model.get_submodule(model.trains) if isinstance(model, Face) else model


def load_checkpoint(model: nn.Module, filename: str) -> None:
    """Load an exported checkpoint, or what of one of ours was trained, strictly."""
    try:
        state = read_checkpoint(filename).get('state_dict', {})
    except (FileNotFoundError, AttributeError):
        state = {}  # load_student says it better
    roots = {str(key).split('.')[0] for key in state}
    part = next((part for part in ('student', 'teacher') if part in roots), None)
    if part is None:
        load_student(model, filename)
        return
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / Path(filename).name
        torch.save(export_part(dict(state_dict=state), part), exported)
        try:
            load_student(model, exported)
        except ValueError as error:
            raise ValueError(str(error).replace(str(exported), filename)) from None  # the file that the user knows


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.update(load_from=None, resume=False)
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        augment_tests(cfg)
    dump = keep_predictions(cfg, args.out) if args.out else None
    runner = build_runner(cfg)
    load_checkpoint(trained_of(runner.model), args.checkpoint)
    if dump is not None:
        runner.test_evaluator.metrics.append(dump)
    runner.test()


if __name__ == '__main__':
    main()
