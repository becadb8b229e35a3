"""Two thousand steps: what a run holds at their beginning, it holds at their end, and no more."""

import gc
import os
import statistics
import time
from pathlib import Path

import psutil
import pytest
import torch
from mmengine.hooks import Hook
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders_training import Pictures, network, runner

STEPS, WINDOW, COUNTED = 2000, 250, 25


def hooks_of(model) -> int:
    """PyTorch's hooks on all modules of a distiller and its teachers."""
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    modules = [module for root in (model, *model.teachers.values()) for module in root.modules()]
    return sum(len(getattr(module, kind)) for module in modules for kind in kinds)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do: a step that grows slower by doing more is seen here, on any machine."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Watch(Hook):
    """Counts at the end of every window what could leak, and in its last steps their operations."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.rows, self.seconds, self._last = [], [], None
        self.operations = Operations()

    def before_train_iter(self, runner, **_):
        if runner.iter % WINDOW >= WINDOW - COUNTED:
            self.operations.__enter__()

    def after_train_iter(self, runner, **_):
        if runner.iter % WINDOW >= WINDOW - COUNTED:
            self.operations.__exit__(None, None, None)
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        if self.every_n_train_iters(runner, WINDOW):
            gc.collect()
            self.rows.append(
                dict(
                    megabytes=psutil.Process().memory_info().rss / 2**20,
                    tensors=sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
                    hooks=hooks_of(runner.model),
                    children=len(children()),
                    threads=psutil.Process().num_threads(),
                    files=len(os.listdir('/proc/self/fd')),
                    operations=self.operations.count / COUNTED,
                )
            )
            self.operations.count = 0
        self._last = time.perf_counter()


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='no /proc')
def test_two_thousand_steps(tmp_path):
    """SoKD while it searches and after, with a worker, EMA, validations, drawings and checkpoints."""
    before = children()
    model = dict(
        type='mmsokd.SoKDDistiller',
        student=network(8),
        teacher=network(16),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3')),
        probe_size=32,
    )
    epochs = 20
    loader = dict(
        dataset=Pictures(STEPS // epochs * 2),
        batch_size=2,
        num_workers=1,
        persistent_workers=True,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    others = [
        dict(type='EMAHook'),
        dict(type='mmsokd.DAMHook', num_images=1),
        dict(type='mmsokd.StudentCheckpointHook'),
    ]
    settings = dict(
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=5, max_keep_ckpts=1), logger=dict(type='LoggerHook')
        ),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=5),
    )
    run = runner(tmp_path, search=STEPS // 2, model=model, train_dataloader=loader, hooks=others, **settings)
    watch = Watch()
    run.register_hook(watch)
    run.train()
    assert run.iter == STEPS
    steps = [statistics.median(watch.seconds[i : i + WINDOW]) for i in range(0, STEPS - 1, WINDOW)]
    for row, seconds in zip(watch.rows, steps, strict=True):
        print(', '.join(f'{key} {value:.1f}' for key, value in dict(row, milliseconds=1e3 * seconds).items()))

    first, last = watch.rows[1], watch.rows[-1]  # in the first window things come into being
    assert last['megabytes'] - first['megabytes'] < 6
    for key in ('tensors', 'hooks', 'children', 'threads', 'files'):
        assert last[key] <= first[key], key
    half = len(watch.rows) // 2  # the policy is searched in the first
    for rows in (watch.rows[1:half], watch.rows[half:]):
        assert rows[-1]['operations'] < 1.1 * rows[0]['operations']  # what is drawn differs from step to step
    del run, watch
    gc.collect()
    _, alive = psutil.wait_procs(children() - before, timeout=60)
    assert not alive
