"""What train.py and test.py share: mmdet's flags, and the config they make, for mmdet, mmseg and mmpretrain alike."""

import argparse
import os
import subprocess
from datetime import timedelta
from pathlib import Path

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmsokd.checkpoint import guard_mmengine
from mmsokd.hooks.checkpoint import make_saves_atomic

# Where a launcher tells a process its rank, the number of ranks, and its rank on its node.
RANK_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


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
    if cfg.get('launcher', 'none') != 'none' and get_device() == 'cpu':
        join_on_cpu(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    make_saves_atomic(runner)
    return runner


def join_on_cpu(cfg: Config) -> None:
    """Do without a GPU what MMEngine's launchers ask CUDA for: join the ranks by gloo, and wrap the model on no device.

    MMEngine joins no ranks that are joined already, and a wrapper's own ``device_ids`` are stronger than its.
    """
    address = [] if 'MASTER_ADDR' in os.environ else ['SLURM_NODELIST' if cfg.launcher == 'slurm' else 'MASTER_ADDR']
    missing = [name for name in (*RANK_VARIABLES[cfg.launcher], *address) if name not in os.environ]
    if missing:
        raise SystemExit(
            f'--launcher {cfg.launcher}: expected the environment variable {missing[0]}, found none; '
            'tools/dist_train.sh and tools/slurm_train.sh start the processes that have it'
        )
    ranks = (os.environ[name] for name in RANK_VARIABLES[cfg.launcher])
    os.environ.update(zip(RANK_VARIABLES['pytorch'], ranks, strict=True))
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_node(os.environ['SLURM_NODELIST'])
    os.environ.setdefault('MASTER_PORT', '29500')
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    limit = {} if timeout is None else dict(timeout=timedelta(seconds=timeout))
    torch.distributed.init_process_group('gloo', **limit)
    if cfg.get('model_wrapper_cfg') is None:  # then as MMEngine wraps it
        unused = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = dict(broadcast_buffers=False, find_unused_parameters=unused)
    wrapper = cfg.model_wrapper_cfg
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    kind = getattr(wrapper.type, '__name__', wrapper.type)  # new-style configs name classes
    if kind.endswith('DistributedDataParallel'):
        wrapper.setdefault('device_ids', None)


def _first_node(nodes: str) -> str:
    """Of Slurm's short form, as in ``node[3-5,8]``."""
    command = ['scontrol', 'show', 'hostnames', nodes]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]


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
