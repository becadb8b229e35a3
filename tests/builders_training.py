"""A whole SoKD training of a tiny classifier, with chance wherever a lab's run has some, and what it leaves."""

import random
import uuid
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from tests.builders import classifier

COUNT, BATCH = 12, 4  # three iterations an epoch


class Pictures(torch.utils.data.Dataset):
    """Noise that is loaded with chance from all three generators, as pipelines take it."""

    metainfo = dict(classes=('a', 'b', 'c', 'd', 'e'))

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        picture = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(i)).float()
        if random.random() < 0.5:
            picture = picture.flip(-1)
        picture = picture * np.random.uniform(0.5, 1) + torch.rand(3, 1, 1)
        return dict(inputs=picture, data_samples=DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % 5))


class Nothing(Evaluator):
    """Looks at nothing: a validation draws from PyTorch's generator all the same."""

    def __init__(self):
        super().__init__([])

    def process(self, data_samples, data_batch=None):
        """Not looked at."""

    def evaluate(self, size):
        return dict(acc=0.5)


def network(width: int, **kwargs) -> dict:
    """A ResNet-8 of a thousand parameters."""
    model = classifier(4, backbone=dict(type='mmsokd.CIFARResNet', depth=8, widths=(4, 4, 4, width)), **kwargs)
    model['head']['in_channels'] = width
    return model


def terms() -> dict:
    """One with a mask by chance, one with a memory bank, one that fades, and one that ends before the training."""
    return dict(
        loss_mgd=dict(type='mmsokd.MGDLoss', tap='backbone.layer2'),
        loss_crd=dict(type='mmsokd.CRDLoss', tap='neck', num_samples=COUNT, feat_dim=4, nce_k=8, loss_weight=0.1),
        loss_vid=dict(type='mmsokd.VIDLoss', tap='backbone.layer3', loss_weight=dict(shape='cosine')),
        loss_kd=dict(type='mmsokd.KDLoss', tap='head', loss_weight=[(0.0, 1.0), (0.6, 0.0)]),
    )


def sokd(**kwargs) -> dict:
    """A student with dropout and mixup; ``kwargs`` replace the distiller's keys."""
    student = network(8)
    student['head'] = dict(
        type='StackedLinearClsHead',
        num_classes=5,
        in_channels=8,
        mid_channels=[8],
        dropout_rate=0.5,
        loss=dict(type='CrossEntropyLoss', use_soft=True),
    )
    student['data_preprocessor'].update(
        num_classes=5, to_onehot=True, batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8)])
    )
    model = dict(type='mmsokd.SoKDDistiller', student=student, teacher=network(16), terms=terms(), probe_size=32)
    return dict(model, **kwargs)


def refined(**kwargs) -> dict:
    """:func:`sokd` with another ``refine``."""
    return sokd(refine=dict(type='mmsokd.FeatureAugmentationNeck', **kwargs))


def runner(
    work_dir,
    loop='epochs',
    epochs=4,
    workers=0,
    search=0,
    hooks=(),
    validates=True,
    kind=Runner,
    **kwargs,
) -> Runner:
    """Three iterations an epoch, in either loop; ``search`` counts iterations; ``kind`` is a class of MMEngine's."""
    sampler = 'DefaultSampler' if loop == 'epochs' else 'InfiniteSampler'
    loader = dict(
        dataset=Pictures(),
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type=sampler, shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    if loop == 'epochs':
        train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
        checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
    else:
        train_cfg = dict(type='IterBasedTrainLoop', max_iters=3 * epochs, val_interval=3)
        checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=1)
    settings = dict(
        model=sokd(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9), clip_grad=dict(max_norm=5)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
            dict(type='CosineAnnealingLR', by_epoch=False, T_max=3 * epochs),
        ],
        default_hooks=dict(checkpoint=checkpoint, logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[
            dict(type='mmsokd.GuardHook'),
            dict(type='mmsokd.SeedHook'),
            dict(type='mmsokd.PolicySearchHook', search_iters=search, lr=0.05),
            *hooks,
        ],
        randomness=dict(seed=3),
        log_level='ERROR',
        experiment_name=uuid.uuid4().hex,  # a MessageHub of its own
        default_scope='mmpretrain',
    )
    if validates:
        val = dict(loader, num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler'))
        settings.update(val_dataloader=val, val_cfg=dict(), val_evaluator=Nothing())
    settings.update(kwargs)
    return kind(**settings, cfg=Config(dict(work_dir=str(work_dir))))


def saved(folder) -> dict:
    """The last checkpoint, without what tells the time and the place."""
    checkpoint = torch.load((Path(folder) / 'last_checkpoint').read_text(), map_location='cpu', weights_only=False)
    hub = checkpoint['message_hub']
    return dict(
        {key: value for key, value in checkpoint.items() if key not in ('meta', 'message_hub')},
        log={
            key: value.data
            for key, value in hub['log_scalars'].items()
            if key.startswith('train/') and 'time' not in key
        },
        clock={key: checkpoint['meta'][key] for key in ('epoch', 'iter')},
    )


def differences(a, b, path='') -> list[str]:
    """Where two trees of tensors and numbers differ, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f'{path}: {sorted(map(str, a.keys() ^ b.keys()))}']
        return [line for key in a for line in differences(a[key], b[key], f'{path}.{key}')]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f'{path}: {len(a)} and {len(b)} entries']
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in differences(*pair, f'{path}[{i}]')]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    else:
        same = a == b or (a != a and b != b)  # NaN
    return [] if same else [path]
