"""FM-KT in a distiller: who gets a gradient, what is exported and resumed, two processes, and what it refuses."""

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

FMKT = dict(type='mmsokd.FMKTLoss', tap=['backbone.layer4', 'head.fc'], steps=4)


def built(network=classifier, **term):
    torch.manual_seed(0)
    models = dict(student=network(8), teacher=network(12), probe_size=64)
    return distiller('Distiller', **models, terms=dict(loss_fmkt=dict(FMKT, **term))).train()


@pytest.mark.parametrize('tap', [['backbone.layer4', 'head.fc'], ['neck', 'head.fc']])
def test_students_own_head_and_all_of_the_flow_learn(tap):
    model = built(tap=tap)
    losses_of(model, raw_cls_batch(4))['distill.loss_fmkt'].backward()
    assert model.student.head.fc.weight.grad.abs().sum() > 0
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in model.terms.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_flow_vanishes_from_the_exported_student():
    model = built()
    saved = model.state_dict()
    assert {'velocity', 'classify'} <= {part for name in saved if name.startswith('terms.') for part in name.split('.')}
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
        (classifier, 'head.fc', 'expected a feature and the output'),
        (retinanet, ['neck', 'bbox_head.retina_cls'], 'expected a feature and the output'),
        (retinanet, ['neck[0]', 'bbox_head.retina_cls[0]'], "expected 'gt_sem_seg' in each data sample"),
        (segmentor, ['backbone.layer1', 'decode_head.conv_seg'], 'expected a feature (N, C) or (N, C, H, W)'),
    ],
)
def test_what_does_not_fit_is_told_when_the_model_is_built(network, tap, message):
    with pytest.raises(ValueError, match=r'^terms\.loss_fmkt: ' + re.escape(message)):
        built(network, tap=tap)
