"""Work dirs as MMEngine writes them, made by hand."""

import json
from pathlib import Path

from mmengine.config import Config

ENVIRONMENT = """2026/01/01 00:00:00 - mmengine - INFO - 
------------------------------------------------------------
System environment:
    sys.platform: linux
    Python: 3.11.2 (main) [GCC 12.2.0]
    PyTorch: 2.1.2
    PyTorch compiling details: PyTorch built with:
  - GCC 9.3

Runtime environment:
    cudnn_benchmark: False
    mp_cfg: {'mp_start_method': 'fork'}
    seed: 7
    Distributed training: True
    GPU number: 2
------------------------------------------------------------

2026/01/01 00:00:00 - mmengine - INFO - Config:
"""  # noqa: W291  so MMEngine


def config(**kwargs) -> dict:
    """Of an epoch-based training of a plain classifier."""
    cfg = dict(
        model=dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18)),
        default_scope='mmpretrain',
        train_cfg=dict(by_epoch=True, max_epochs=3),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=10), checkpoint=dict(type='CheckpointHook')),
        train_dataloader=dict(batch_size=4),
        randomness=dict(seed=7),
    )
    return {**cfg, **kwargs}


def train_row(iteration: int, epoch: int, loss: float, **kwargs) -> dict:
    row = dict(lr=0.1, data_time=0.25, time=2.0, loss=loss, **kwargs)
    return dict(row, epoch=epoch, iter=iteration, step=iteration)


def val_row(step: int, **metrics) -> dict:
    return dict(metrics, data_time=0.1, time=0.2, step=step)


def write_run(folder: Path, stamp: str, rows: list[dict], cfg: dict | None = None, policy=(), log: str = '') -> Path:
    """One start of a training; returns its own folder."""
    part = folder / stamp
    (part / 'vis_data').mkdir(parents=True)
    for name, lines in (('scalars', rows), ('policy', policy)):
        if lines:
            text = ''.join(json.dumps(line) + '\n' for line in lines)
            (part / 'vis_data' / f'{name}.json').write_text(text)
    Config(cfg or config()).dump(part / 'vis_data' / 'config.py')
    (part / f'{stamp}.log').write_text(log)
    return part


def sokd_config(teacher: dict, student: dict, **kwargs) -> dict:
    model = dict(
        type='mmsokd.SoKDDistiller',
        student=student,
        teacher=dict(cfg=teacher, checkpoint='nowhere/teacher.pth'),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer4', loss_weight=2.0)),
    )
    return config(model=model, **kwargs)
