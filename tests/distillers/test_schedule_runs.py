"""A schedule over a whole training by MMEngine's loops, and one that is cut in two."""

import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.hooks.test_training import config, make_pictures

ITERS, STOP = 8, 6  # two iterations an epoch
LOOPS = {
    'epochs': (
        dict(type='EpochBasedTrainLoop', max_epochs=ITERS // 2),
        dict(type='DefaultSampler', shuffle=True),
        dict(type='CheckpointHook', interval=1),
        dict(stop=STOP // 2),
    ),
    'iterations': (
        dict(type='IterBasedTrainLoop', max_iters=ITERS, val_interval=ITERS),
        dict(type='InfiniteSampler', shuffle=True),
        dict(type='CheckpointHook', by_epoch=False, interval=2),
        dict(stop=STOP, by_epoch=False),
    ),
}


class Watch(Hook):
    """Notes the term's weight, and whether the teacher ran; may pull the plug."""

    priority = 'LOWEST'

    def __init__(self, kill_at=None):
        self.kill_at, self.seen, self.ran = kill_at, [], []

    def before_train(self, runner):
        runner.model.teacher.backbone.register_forward_pre_hook(lambda *_: self.ran.append(runner.iter))

    def before_train_iter(self, runner, **_):
        if runner.iter == self.kill_at:
            raise KeyboardInterrupt

    def after_train_iter(self, runner, outputs=None, **_):
        self.seen.append((runner.iter, runner.model._weights()['loss_hint'], outputs['distill.loss_hint'].item()))


def run(data, work_dir, loop, kill_at=None, **kwargs):
    train_cfg, sampler, checkpoint, stop = LOOPS[loop]
    cfg = config(data, work_dir, **kwargs)
    cfg.train_cfg, cfg.train_dataloader.sampler, cfg.default_hooks.checkpoint = train_cfg, sampler, checkpoint
    cfg.model.type, cfg.model.terms.loss_hint.loss_weight = (
        'mmsokd.Distiller',
        dict(shape='cosine', start=2.0, final=1.0, **stop),
    )
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        cfg[key] = None
    runner, watch = Runner.from_cfg(cfg), Watch(kill_at)
    runner.register_hook(watch)
    if kill_at is None:
        runner.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    return runner, watch


@pytest.mark.parametrize(('loop', 'kill_at'), [('epochs', 4), ('iterations', 7)])  # on the ramp, and after the stop
def test_cut_in_two_it_is_the_same(tmp_path, loop, kill_at):
    data = make_pictures(tmp_path / 'pictures')
    whole, straight = run(data, tmp_path / 'whole', loop)
    by_hand = [1.5 + math.cos(math.pi * i / ITERS) / 2 if i < STOP else 0.0 for i in range(ITERS)]
    assert [weight for _, weight, _ in straight.seen] == pytest.approx(by_hand)
    assert [loss > 0 for *_, loss in straight.seen] == [i < STOP for i in range(ITERS)]
    assert straight.ran == list(range(STOP))

    run(data, tmp_path / 'cut', loop, kill_at=kill_at)
    second, resumed = run(data, tmp_path / 'cut', loop, resume=True)
    assert resumed.seen == straight.seen[kill_at // 2 * 2 :]  # a checkpoint every second iteration
    a, b = whole.model.state_dict(), second.model.state_dict()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
