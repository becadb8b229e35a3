"""No step of a distiller waits for the device, beyond what its student does itself."""

import copy

import pytest
import torch

from mmsokd.losses import FitNetLoss
from tests.builders import classifier, distiller, raw_batch, raw_cls_batch, raw_seg_batch, retinanet, segmentor
from tests.syncs import Syncs, syncs_of

TASKS = {
    'detection': (retinanet, raw_batch, 'neck', dict(channels=24)),
    'segmentation': (segmentor, raw_seg_batch, 'decode_head.bottleneck', dict(base=16)),
    'classification': (classifier, raw_cls_batch, 'backbone.layer3', dict(base=16)),
}


def built(task, kind, **more):
    make, batch, tap, wider = TASKS[task]
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap=tap), loss_pkd=dict(type='mmsokd.PKDLoss', tap=tap))
    return distiller(kind, student=make(), teacher=make(**wider), terms=terms, **more), batch()


def wait_of_student_and_ours(task, kind, searching=False, **more):
    model, batch = built(task, kind, **more)
    if searching:
        model.refine.necks['shared'].searching = True
    data = model.data_preprocessor(batch, True)
    alone = copy.deepcopy(model.student)
    return syncs_of(alone, copy.deepcopy(data)), syncs_of(model, data)


@pytest.mark.parametrize('task', TASKS)
def test_a_host_adds_no_wait(task):
    alone, ours = wait_of_student_and_ours(task, 'Distiller')
    assert ours == alone


@pytest.mark.parametrize('per_sample', [False, True])
@pytest.mark.parametrize('searching', [True, False])
@pytest.mark.parametrize('task', TASKS)
def test_sokd_adds_no_wait(task, searching, per_sample):
    refine = dict(type='mmsokd.FeatureAugmentationNeck', per_sample=per_sample)
    alone, ours = wait_of_student_and_ours(task, 'SoKDDistiller', searching, refine=refine)
    assert ours == alone


def test_a_wait_would_be_seen(monkeypatch):
    monkeypatch.setattr(FitNetLoss, 'forward', lambda self, s, t, weight=None: s.mean() * t.mean().item())
    alone, ours = wait_of_student_and_ours('classification', 'Distiller')
    assert ours - alone == {'_local_scalar_dense': 1}


def test_what_is_counted():
    x, host = torch.rand(3), torch.rand(3)
    with Syncs(x) as syncs:
        host.sum().item()
        (x * 2)[x > 0.5]
        bool((x > 0).any())
        (host + x).tolist()
    assert syncs.found == {'index': 1, '_local_scalar_dense': 1}


@pytest.mark.cuda
@pytest.mark.parametrize('searching', [True, False])
def test_no_wait_on_a_gpu(searching):
    model, batch = built('classification', 'SoKDDistiller')
    model.cuda()
    neck = model.refine.necks['shared']
    neck.searching = searching
    data = model.data_preprocessor(batch, True)

    def step():
        model.parse_losses(model(**data, mode='loss'))[0].backward()
        neck.pop_gradient()

    step()  # the teacher moves
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(5):
            step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
