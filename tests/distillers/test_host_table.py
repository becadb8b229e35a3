"""The table of hosts and tasks: each host trains for some steps, alone and below SoKD, and its loss falls."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmsokd.losses import TermLoss
from mmsokd.registry import MODELS
from tests import builders
from tests.builders import classifier, gfl, raw_batch, raw_cls_batch, raw_seg_batch, retinanet, segmentor

STAGES = [f'backbone.layer{i}' for i in (1, 2, 3, 4)]
STEPS = {'CRD': (60, 0.001), 'ReviewKD': (60, 0.01), 'ACKD': (60, 0.005)}  # and the learning rate


class Task(NamedTuple):
    student: Callable[[], dict]
    teacher: Callable[[], dict]
    batch: Callable[[], dict]
    at: str  # where SoKD refines the teacher for hosts on logits
    hosts: dict[str, dict]  # each host's term


TASKS = {
    'Classification': Task(
        lambda: classifier(8),
        lambda: classifier(12),
        lambda: raw_cls_batch(8, 32),
        'backbone.layer3',
        {
            'FitNet': dict(tap='backbone.layer3'),
            'AT': dict(tap='backbone.layer3'),
            'PKD': dict(tap='backbone.layer3'),
            'CWD': dict(tap='backbone.layer2'),
            'PCKA': dict(tap='backbone.layer2', patch_size=1, loss_weight=10.0),
            'MGD': dict(tap='backbone.layer2', loss_weight=0.01),
            'ReviewKD': dict(tap=STAGES),
            'VID': dict(tap='backbone.layer3', init_variance=1.0),
            'RKD': dict(tap='backbone.layer3'),
            'SP': dict(tap='backbone.layer3', loss_weight=3000.0),
            'CRD': dict(tap='backbone.layer3', num_samples=30, nce_k=16),
            'KD': dict(tap='head.fc', loss_weight=20.0),
            'DKD': dict(tap='head.fc', loss_weight=5.0),
            'DIST': dict(tap='head.fc', loss_weight=5.0),
            'RCKA': dict(tap='head.fc', loss_weight=1.0),
            'DRKD': dict(tap='head.fc', loss_weight=20.0),
            'StudentFriendlyKD': dict(tap='head.fc', loss_weight=20.0),
            'MTKDSSR': dict(tap=[*STAGES, 'head.fc'], head_channels=8),
            'FMKT': dict(tap=['backbone.layer4', 'head.fc']),
            'DPD': dict(tap='head.fc', loss_weight=20.0),
            'ITAL': dict(tap=['neck', 'head.fc'], loss_weight=20.0),
            'ACKD': dict(tap=[*STAGES, 'head.fc'], head_channels=8),
        },
    ),
    'Segmentation': Task(
        lambda: segmentor(8),
        lambda: segmentor(12, channels=20),
        lambda: raw_seg_batch(4, 64),
        'backbone.layer3',
        {
            'FitNet': dict(tap='backbone.layer4'),
            'AT': dict(tap='backbone.layer4', loss_weight=100.0),
            'PKD': dict(tap='decode_head.bottleneck'),
            'CWD': dict(tap='decode_head.bottleneck'),
            'PCKA': dict(tap='decode_head.bottleneck', patch_size=2, loss_weight=10.0),
            'MGD': dict(tap='decode_head.bottleneck', loss_weight=0.01),
            'ReviewKD': dict(tap=STAGES),
            'VID': dict(tap='backbone.layer4', init_variance=1.0),
            'RKD': dict(tap='backbone.layer4'),
            'SP': dict(tap='backbone.layer4', loss_weight=3000.0),
            'KD': dict(tap='decode_head.conv_seg', loss_weight=20.0),
            'CWDLogits': dict(tap='decode_head.conv_seg'),
            'DKD': dict(tap='decode_head.conv_seg', loss_weight=5.0),
            'DIST': dict(tap='decode_head.conv_seg', loss_weight=5.0),
            'RCKA': dict(tap='decode_head.conv_seg', loss_weight=1.0),
            'DRKD': dict(tap='decode_head.conv_seg', loss_weight=20.0),
            'StudentFriendlyKD': dict(tap='decode_head.conv_seg', loss_weight=20.0, max_tokens=64),
            'MTKDSSR': dict(tap=[*STAGES, 'decode_head.conv_seg'], head_channels=8),
            'FMKT': dict(tap=['decode_head.bottleneck', 'decode_head.conv_seg']),
            'DPD': dict(tap='decode_head.conv_seg', loss_weight=20.0),
            'ITAL': dict(tap=['decode_head.bottleneck', 'decode_head.conv_seg'], loss_weight=20.0),
            'ACKD': dict(tap=[*STAGES, 'decode_head.conv_seg'], head_channels=8),
        },
    ),
    'Detection': Task(
        lambda: retinanet(16),
        lambda: retinanet(24),
        lambda: raw_batch(3),
        'backbone.layer3',
        {
            'FitNet': dict(tap='neck'),
            'AT': dict(tap='neck', loss_weight=100.0),
            'PKD': dict(tap='neck'),
            'CWD': dict(tap='neck'),
            'PCKA': dict(tap='neck[:2]', patch_size=2, loss_weight=10.0),
            'MGD': dict(tap='neck', loss_weight=1e-3),
            'FGD': dict(tap='neck'),
            'ReviewKD': dict(tap='neck'),
            'VID': dict(tap='neck', init_variance=1.0),
            'RKD': dict(tap='backbone.layer4'),
            'SP': dict(tap='backbone.layer4', loss_weight=3000.0),
            'KD': dict(tap='bbox_head.retina_cls', activation='sigmoid', tau=1.0, loss_weight=10.0),
            'CWDLogits': dict(tap='bbox_head.retina_cls'),
            'LD': dict(tap='bbox_head[1]'),
            'StudentFriendlyKD': dict(tap='bbox_head.retina_cls', num_classes=3, loss_weight=10.0),
            'MTKDSSR': dict(tap=['neck', 'bbox_head.retina_cls'], num_responses=3, activation='sigmoid', tau=1.0),
            'DRKD': dict(tap='bbox_head.retina_cls', num_classes=3, activation='sigmoid', tau=1.0, loss_weight=10.0),
        },
    ),
}
ROWS = [(task, host) for task, row in TASKS.items() for host in row.hosts]


def distiller(kind: str, task: str, host: str):
    torch.manual_seed(0)
    row = TASKS[task]
    student, teacher = (gfl(16), gfl(24)) if host == 'LD' else (row.student(), row.teacher())
    in_place = kind == 'SoKDDistiller' and MODELS.get(f'mmsokd.{host}Loss').on_logits
    model = builders.distiller(
        kind,
        student=student,
        teacher=teacher,
        terms=dict(loss_host=dict(type=f'mmsokd.{host}Loss', **row.hosts[host])),
        probe_size=64,
        **(dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at=row.at)) if in_place else {}),
    )
    builders.make_it_speak(model.teacher, row.batch())
    return model.train()


@pytest.mark.parametrize('kind', ['Distiller', 'SoKDDistiller'])
@pytest.mark.parametrize(('task', 'host'), ROWS)
def test_loss_falls(task, host, kind):
    """By the student's doing: what the term learns itself, an adapter or an embedding, stays as it is.

    But for MGD's generator, which fills masked maps and has nothing to tell before it has learnt to.
    """
    model = distiller(kind, task, host)
    steps, lr = STEPS.get(host, (20, 0.005))
    learning = model if host == 'MGD' else model.student
    wrapper = OptimWrapper(torch.optim.Adam(learning.parameters(), lr=lr))
    batch = TASKS[task].batch()
    values = [builders.step(model, wrapper, batch)['distill.loss_host'].item() for _ in range(steps)]
    first, last = sum(values[:3]) / 3, sum(values[-5:]) / 5  # SoKD draws an operation a step, MGD a mask
    assert last < 0.9 * first, values


@pytest.mark.parametrize(('task', 'host'), ROWS)
def test_the_loss_reaches_the_student(task, host):
    model = distiller('Distiller', task, host)
    model.zero_grad()
    builders.losses_of(model, TASKS[task].batch())['distill.loss_host'].backward()
    grads = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
    assert sum(grad.abs().sum() for grad in grads.values()) > 0
    assert any(name.startswith('backbone.') for name in grads)


def test_every_registered_host_is_in_the_table():
    losses = {cls for cls in MODELS.module_dict.values() if issubclass(cls, TermLoss)}
    assert {cls.__name__.removesuffix('Loss') for cls in losses} == {host for _, host in ROWS}


def test_the_documented_table_is_this_one():
    page = Path(__file__).parents[2] / 'docs' / 'hosts.md'
    header, _, *lines = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in page.read_text().splitlines()
        if line.startswith('|')
    ]
    ticks = {(task, line[header.index('Host')]) for line in lines for task in TASKS if line[header.index(task)] == '✓'}
    assert ticks == set(ROWS)
