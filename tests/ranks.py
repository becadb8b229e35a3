"""Hooks for a training in processes of their own: what each rank saw, and a pause to be interrupted in."""

import os
import time
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmsokd.augment import SUB_POLICIES
from mmsokd.hooks.common import distiller_of


@HOOKS.register_module()
class RecordHook(Hook):
    """Writes ``rank_<rank>.pth`` into the work dir: this rank's losses in each iteration, and what it ends with."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append([float(value) for key, value in sorted(outputs.items()) if 'loss' in key])

    def after_train(self, runner):
        model = distiller_of(runner)
        policy = model.refine.necks['shared'].policy if model.refine is not None else None
        record = dict(
            losses=self.losses,
            weights=dict(model.named_parameters()),  # no buffers: BatchNorm's statistics are each rank's own
            policy=policy.tensors() if policy is not None else {},
            wrapper=type(runner.model).__name__,
            restarts=int(os.environ.get('SLURM_RESTART_COUNT', 0)),
        )
        torch.save(record, Path(runner.work_dir) / f'rank_{get_rank()}.pth')


@HOOKS.register_module()
class PauseHook(Hook):
    """In a job's first life, waits after iteration ``at`` to be interrupted, and says so by ``paused_<rank>``."""

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, **_):
        if runner.iter == self.at and 'SLURM_RESTART_COUNT' not in os.environ:
            (Path(runner.work_dir) / f'paused_{get_rank()}').touch()
            time.sleep(300)
            raise TimeoutError('nobody interrupted')


@HOOKS.register_module()
class AffineHook(Hook):
    """Lets the policy draw pairs of affine operations only: they treat each picture as if it were alone."""

    priority = 'VERY_HIGH'

    def before_run(self, runner):
        affine = {'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate'}
        for neck in distiller_of(runner).refine.necks.values():
            others = [k for k, pair in enumerate(SUB_POLICIES) if not affine.issuperset(pair)]
            neck.policy.alpha[others] = -50.0


@HOOKS.register_module()
class SameDrawsHook(Hook):
    """Gives ``counts`` iterations, which make one update, one draw."""

    priority = 'VERY_HIGH'

    def __init__(self, counts):
        self.counts = counts

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for neck in distiller_of(runner).refine.necks.values():
            neck.policy.draws = runner.iter // self.counts
