"""What train.py and test.py share: mmdet's flags, and the config they make, for mmdet, mmseg and mmpretrain alike."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmsokd.checkpoint import guard_mmengine
from mmsokd.hooks.checkpoint import make_saves_atomic


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file path')
    parser.add_argument('--work-dir', help='folder for logs and models; by default ./work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, as key=value pairs: a.b=1 key="[a,b]" key=a,b key="[(a,b),(c,d)]" without blanks',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='read all checkpoints by pickle, which may run code in them'
    )
    # torch.distributed.launch of PyTorch 2 passes --local-rank, the earlier one --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """The config with the shared flags applied."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    guard_mmengine(args.trust_checkpoint)
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if cfg.get('default_scope') == 'mmpretrain':
        _set_collate(cfg)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def build_runner(cfg: Config) -> Runner:
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    make_saves_atomic(runner)
    return runner


def train(cfg: Config) -> None:
    """Train; a data set from which mmdet's filter removes every picture is told as such.

    mmdet builds it before any hook runs, and fails on concatenating nothing.
    """
    try:
        build_runner(cfg).train()
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):
            raise
        dataset = cfg.train_dataloader.dataset
        raise SystemExit(
            'train_dataloader.dataset: expected annotated pictures, found none in '
            f'ann_file={dataset.get("ann_file")!r} under data_root={dataset.get("data_root")!r}; '
            'do metainfo.classes have the names of that file?'
        ) from error


def _set_collate(cfg: Config) -> None:
    """Set what mmpretrain's configs leave to its own tools/train.py, and its models cannot do without."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].setdefault('collate_fn', dict(type='default_collate'))
            cfg[name].setdefault('pin_memory', True)
            cfg[name].setdefault('persistent_workers', cfg[name].get('num_workers', 0) > 0)
