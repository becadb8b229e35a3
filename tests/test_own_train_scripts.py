"""The own tools/train.py of mmseg and mmpretrain run our configs to the end and resume them; test.py, the students."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from tests.builders import classifier, segmentor

ROOT = Path(__file__).resolve().parents[1]
HOOKS = Config.fromfile(ROOT / 'configs' / '_base_' / 'sokd.py').custom_hooks

pytestmark = pytest.mark.slow


def run(library, tool, *args):
    """A tool of the library's own; its output."""
    script = Path(find_spec(library).origin).parent / '.mim' / 'tools' / f'{tool}.py'
    command = [sys.executable, '-W', 'ignore', str(script), *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def distilled(student, teacher, tap):
    return dict(
        type='mmsokd.SoKDDistiller',
        student=student,
        teacher=teacher,
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap=tap)),
        probe_size=64,
    )


def make_maps(folder):
    """Pictures whose colour is their class, with the class maps."""
    rng = np.random.default_rng(0)
    for kind in ('img', 'ann'):
        (folder / kind).mkdir(parents=True)
    for i in range(8):
        labels = np.kron(rng.integers(0, 4, (2, 2), dtype=np.uint8), np.ones((32, 32), dtype=np.uint8))
        picture = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8) + 60 * np.stack([labels] * 3, -1)
        cv2.imwrite(str(folder / 'img' / f'{i}.png'), picture)
        cv2.imwrite(str(folder / 'ann' / f'{i}.png'), labels)
    return folder


def make_classes(folder):
    """Pictures whose brightness is their class, one folder a class."""
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / f'class{label}').mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8) + np.uint8(80 * label)
            cv2.imwrite(str(folder / f'class{label}' / f'{i}.png'), picture)
    return folder


def loaders(dataset, test_pipeline):
    common = dict(batch_size=4, num_workers=0, persistent_workers=False)
    train = dict(**common, sampler=dict(type='InfiniteSampler', shuffle=True), dataset=dataset)
    test = dict(
        **common, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(dataset, pipeline=test_pipeline)
    )
    return dict(train_dataloader=train, val_dataloader=test, test_dataloader=test)


def schedule():
    """Six iterations, as mmseg counts."""
    return dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
        ),
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        custom_imports=dict(imports=['mmsokd'], allow_failed_imports=False),
    )


def segmentation(folder):
    pack = dict(type='PackSegInputs')
    load, annotate = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(make_maps(folder / 'data')),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=('a', 'b', 'c', 'd'), palette=[[i * 60] * 3 for i in range(4)]),
        pipeline=[load, annotate, pack],
    )
    evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    return Config(
        dict(
            default_scope='mmseg',
            **loaders(dataset, [load, annotate, pack]),
            val_evaluator=evaluator,
            test_evaluator=evaluator,
            **schedule(),
        )
    )


def classification(folder):
    pack, load = dict(type='PackInputs'), dict(type='LoadImageFromFile')
    dataset = dict(
        type='CustomDataset', data_root=str(make_classes(folder / 'data')), with_label=True, pipeline=[load, pack]
    )
    evaluator = dict(type='Accuracy', topk=(1,))
    return Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(num_classes=3, mean=[127.5] * 3, std=[60.0] * 3, to_rgb=True),
            **loaders(dataset, [load, pack]),
            val_evaluator=evaluator,
            test_evaluator=evaluator,
            **schedule(),
        )
    )


TASKS = {
    'mmseg': (segmentation, segmentor(8), segmentor(12, channels=20), 'decode_head.bottleneck', r'mIoU: ([\d.]+)'),
    'mmpretrain': (
        classification,
        classifier(8, classes=3),
        classifier(16, classes=3),
        'backbone.layer3',
        r'accuracy/top1: ([\d.]+)',
    ),
}


@pytest.mark.parametrize('library', TASKS)
def test_trains_resumes_and_exports(library, tmp_path):
    make, student, teacher, tap, metric = TASKS[library]
    cfg = make(tmp_path)
    plain = Config({**cfg.to_dict(), 'model': student})
    plain.dump(tmp_path / 'student.py')
    cfg.model, cfg.custom_hooks = distilled(student, teacher, tap), HOOKS
    cfg.dump(tmp_path / 'sokd.py')
    work = tmp_path / 'work'
    out = run(library, 'train', tmp_path / 'sokd.py', '--work-dir', work)
    assert re.search(r'distill\.loss_hint: \d', out)
    assert re.search(r'sokd\.loss_area: \d', out)
    trained = re.findall(metric, out)[-1]
    checkpoint = torch.load(work / 'iter_6.pth', weights_only=False)
    assert not [key for key in checkpoint['state_dict'] if 'teacher' in key]

    (work / 'last_checkpoint').write_text(str(work / 'iter_3.pth'))
    again = run(library, 'train', tmp_path / 'sokd.py', '--work-dir', work, '--resume')
    assert re.findall(metric, again)[-1] == trained
    resumed = torch.load(work / 'iter_6.pth', weights_only=False)['state_dict']
    assert all(torch.equal(value, resumed[key]) for key, value in checkpoint['state_dict'].items())

    tested = run(library, 'test', tmp_path / 'student.py', work / 'student_iter_6.pth', '--work-dir', tmp_path / 'test')
    assert re.findall(metric, tested)[-1] == trained
