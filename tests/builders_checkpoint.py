"""A tiny Runner and its checkpoints, for the tests of reading and writing them."""

import io
import pickle
import uuid
import zipfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn


@MODELS.register_module(name='CheckpointToy', force=True)
class Toy(BaseModel):
    """Two layers and a buffer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))

    def forward(self, inputs, labels=None, mode='tensor'):
        inputs = torch.stack(list(inputs)) if isinstance(inputs, list | tuple) else inputs
        out = self.net(inputs)
        if mode == 'loss':
            return dict(loss=out.square().mean())
        return list(out)


class Scores(Evaluator):
    """An evaluator that says what it is told."""

    def __init__(self, scores):
        super().__init__([])
        self.scores = list(scores)

    def process(self, data_samples, data_batch=None):
        """Nothing to collect."""

    def evaluate(self, size):
        return {'acc': self.scores.pop(0)}


class Pictures(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'), palette=[(0, 0, 0), (255, 255, 255)])

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return dict(inputs=torch.full((3,), float(i)))


def runner(work_dir, epochs=2, scores=None, **kwargs) -> Runner:
    """Two iterations an epoch; ``scores`` are what each validation finds."""
    loader = dict(dataset=Pictures(), batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True))
    settings = dict(
        model=dict(type='CheckpointToy'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[dict(type='EMAHook')],
        param_scheduler=[
            dict(type='MultiStepLR', milestones=[1, 3]),
            dict(type='OneCycleLR', total_steps=100_000, eta_max=0.1, by_epoch=False),
        ],
        randomness=dict(seed=0),
        log_level='ERROR',
        experiment_name=uuid.uuid4().hex,  # a MessageHub of its own
        default_scope='mmengine',
    )
    if scores is not None:
        settings.update(val_dataloader=loader, val_cfg=dict(), val_evaluator=Scores(scores))
    settings.update(kwargs)
    return Runner(**settings, cfg=Config(dict(work_dir=str(work_dir))))


def with_pickle(source: Path, target: Path, content: bytes) -> Path:
    """The zip file ``source`` with another ``data.pkl``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for record in old.infolist():
            new.writestr(record.filename, content if record.filename.endswith('data.pkl') else old.read(record))
    return target


def legacy(content: bytes, target: Path) -> Path:
    """The file of ``torch.save`` before 1.6, with ``content`` for the object, without storages."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=True, type_sizes={})):
        pickle.dump(part, file, protocol=2)
    file.write(content)
    pickle.dump([], file, protocol=2)
    target.write_bytes(file.getvalue())
    return target
