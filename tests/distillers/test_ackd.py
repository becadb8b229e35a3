"""ACKD in a distiller: who gets a gradient, what is exported and resumed, two processes, and what it refuses."""

import re

import pytest
import torch

from tests.builders import (
    assert_exports,
    assert_resumes,
    classifier,
    distiller,
    losses_of,
    raw_cls_batch,
    retinanet,
    segmentor,
)
from tests.two_ranks import assert_terms_learn_as_one, on_two_ranks

STAGES = [f'backbone.layer{i}' for i in (2, 3, 4)]
ACKD = dict(type='mmsokd.ACKDLoss', tap=[*STAGES, 'head.fc'], head_channels=8)


def built(network=classifier, **term):
    torch.manual_seed(0)
    models = dict(student=network(8), teacher=network(12), probe_size=64)
    return distiller('Distiller', **models, terms=dict(loss_ackd=dict(ACKD, **term))).train()


def test_student_learners_and_discriminator_learn_and_the_teacher_does_not():
    model = built()
    found = losses_of(model, raw_cls_batch(4))
    assert {name for name in found if name.startswith('ackd.')} == set(model.terms['loss_ackd'].stats)
    found['distill.loss_ackd'].backward()
    assert model.student.head.fc.weight.grad.abs().sum() > 0
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in model.terms.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_learners_vanish_from_the_exported_student():
    model = built()
    saved = model.state_dict()
    parts = {part for name in saved if name.startswith('terms.') for part in name.split('.')}
    assert {'learners', 'query', 'classify', 'discriminate'} <= parts
    assert_exports(model, classifier(8))


def test_resume_continues_exactly():
    assert_resumes(built)


def worker(rank, folder):
    assert_terms_learn_as_one(built, rank)


@pytest.mark.slow
def test_ranks_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


@pytest.mark.parametrize(
    ('network', 'tap', 'message'),
    [
        (classifier, 'head.fc', 'expected stages and, last, the output'),
        (classifier, ['backbone.layer3', 'neck', 'head.fc'], 'expected maps (N, C, H, W) for all stages'),
        (retinanet, ['neck[0]', 'bbox_head.retina_cls[0]'], "expected 'gt_sem_seg' in each data sample"),
        (segmentor, ['backbone.layer3', 'backbone.layer4'], 'expected stages and, last, the output'),
    ],
)
def test_what_does_not_fit_is_told_when_the_model_is_built(network, tap, message):
    with pytest.raises(ValueError, match=r'^terms\.loss_ackd: ' + re.escape(message)):
        built(network, tap=tap)
