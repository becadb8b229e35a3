"""ACKD in a distiller: who gets a gradient, what is exported and resumed, two processes, and what it refuses."""

import re

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from mmsokd.export import export_student
from mmsokd.registry import MODELS
from tests.builders import assert_resumes, classifier, distiller, losses_of, raw_cls_batch, retinanet, segmentor
from tests.two_ranks import assert_same, on_two_ranks

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
    exported = export_student(dict(state_dict=saved, meta={}))['state_dict']
    plain = MODELS.build(classifier(8))
    plain.load_state_dict(exported, strict=True)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.student.parameters())


def test_resume_continues_exactly():
    assert_resumes(built)


def worker(rank, folder):
    for weight in (1.0, [(0.0, 0.0), (0.5, 1.0)]):  # at work, and at rest
        model = built(loss_weight=weight)
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
        before = [p.detach().clone() for p in model.terms.parameters()]
        for i in range(2):  # in the second step DDP misses a parameter that the first has not used
            wrapped.train_step(raw_cls_batch(4, seed=10 * rank + i), wrapper)
        assert_same(torch.cat([p.detach().flatten() for p in model.parameters()]), weight)
        moved = [not torch.equal(*pair) for pair in zip(before, model.terms.parameters(), strict=True)]
        assert moved == [weight == 1.0] * len(before)


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
