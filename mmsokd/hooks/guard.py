"""Checks that need the runner: is there anything to learn from, and is what is saved worth keeping."""

import logging
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsokd.checkpoint import guard_mmengine
from mmsokd.checks import check_bool
from mmsokd.hooks.balance import ITERATIONS, Balance
from mmsokd.hooks.checkpoint import make_saves_atomic
from mmsokd.hooks.common import model_of
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class GuardHook(Hook):
    """Stops a run that cannot learn before it starts, and a checkpoint that is no good before it is written or read.

    It warns of a loss that comes to many times the student's own in the first iterations.

    Beside it, MMEngine reads checkpoints without running what is in them, and writes them atomically; ``cfg.compile``
    leaves the optimizer's step as it is, which PyTorch 2.1 cannot compile where SGD has a momentum.

    Args:
        trust_checkpoint: read all checkpoints by pickle, which runs whatever they say.

    Raises:
        ValueError: the training set is empty, or no picture of it has an annotation; or the optimizer's constructor
            does not find the layers of the trained model, to which it gives learning rates.
        FloatingPointError: a loss or a weight is NaN or Inf when a checkpoint is about to be written.
    """

    priority = 'VERY_HIGH'

    def __init__(self, trust_checkpoint: bool = False) -> None:
        check_bool('GuardHook.trust_checkpoint', trust_checkpoint)
        self.trust_checkpoint = trust_checkpoint
        self._balance = Balance()

    def before_run(self, runner: Runner) -> None:
        """Guard reading and writing, before the Runner loads or resumes."""
        guard_mmengine(self.trust_checkpoint)
        make_saves_atomic(runner)

    def before_train(self, runner: Runner) -> None:
        """Look for annotations, and at the learning rates; keep the optimizer from being compiled."""
        _check_annotated(runner.train_dataloader.dataset)
        _check_layer_decay(runner.optim_wrapper.param_groups, model_of(runner).trains)
        if runner.cfg.get('compile'):
            runner.optim_wrapper.update_params = torch.compiler.disable(runner.optim_wrapper.update_params)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the weights before CheckpointHook does: a library's own may remove the oldest file first."""
        _check_weights(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Likewise where checkpoints are written by iterations. Look at the losses of the first iterations."""
        for name, ratio, key in self._balance.add(outputs or {}):
            print_log(
                f"{name} comes to {ratio:.3g} times the student's own losses, in the mean of {ITERATIONS} iterations, "
                f'and may hold the student back. Unless its authors trained it so: lower {key}',
                'current',
                logging.WARNING,
            )
        savers = [h for h in runner.hooks if isinstance(h, CheckpointHook) and not h.by_epoch]
        if any(self.every_n_train_iters(runner, h.interval) for h in savers) or (
            savers and self.is_last_train_iter(runner)
        ):
            _check_weights(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The same for a checkpoint that somebody else writes."""
        _check_weights(runner)


def _check_weights(runner: Runner) -> None:
    model = model_of(runner)
    model.check_finite()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f'{name}: expected finite weights, found NaN or Inf; no checkpoint is written, the last one is left as '
                'it is'
            )


def _check_layer_decay(groups: Any, trains: str) -> None:
    """The constructors of mmdet and mmseg know a layer by its name, 'backbone.stages.0', and scale all others alike."""
    groups = [group for group in groups if 'param_names' in group] if isinstance(groups, list) else []
    names = {name: group.get('lr_scale') for group in groups for name in group['param_names']}
    scales = {scale for name, scale in names.items() if name.startswith(f'{trains}.backbone.')}
    if len(scales - {None}) == 1:
        raise ValueError(
            f'optim_wrapper.constructor: expected learning rates that differ between the layers of {trains}.backbone, '
            f"found a factor of {scales.pop()} for all: this constructor looks for names without '{trains}.' before "
            f"them; leave 'constructor' out, and give paramwise_cfg=dict(custom_keys={{'{trains}.backbone.stages.0': "
            'dict(lr_mult=0.5), ...})'
        )


def _check_annotated(dataset: Any) -> None:
    files = getattr(dataset, 'ann_file', None)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    about = f'train_dataloader.dataset (ann_file={files!r}, classes={classes!r})'
    if len(dataset) == 0:
        raise ValueError(
            f'{about}: expected annotated pictures, found none; are the paths right, and do the classes have the names '
            'of the annotation file?'
        )
    if not hasattr(dataset, 'get_data_info') or 'instances' not in dataset.get_data_info(0):
        return  # not a detection data set: labels are whole pictures or maps
    if not any(dataset.get_data_info(i)['instances'] for i in range(len(dataset))):
        raise ValueError(
            f'{about}: expected annotations, found {len(dataset)} pictures without any; do the classes have the names '
            'of the annotation file?'
        )
