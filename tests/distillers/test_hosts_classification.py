"""Hosts on mmpretrain's classifiers: vectors, memory banks, and refinement in place."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmsokd.hooks import PolicySearchHook
from tests import builders
from tests.builders import classifier, make_it_speak, raw_cls_batch

PICTURES = 30  # in the training set, of which a batch has 8


def distiller(kind: str, term: dict, **kwargs):
    torch.manual_seed(0)
    cfg = dict(student=classifier(8), teacher=classifier(12), terms=dict(loss_host=term), probe_size=64)
    cfg.update(kwargs)
    model = builders.distiller(kind, **cfg)
    make_it_speak(model.teacher, raw_cls_batch(8, 32))
    return model.train()


def train(model, steps: int = 20) -> list[dict]:
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.001))
    batch = raw_cls_batch(8, 32)
    return [{k: v.item() for k, v in model.train_step(batch, wrapper).items()} for _ in range(steps)]


@pytest.mark.parametrize(
    'term',
    [
        dict(type='mmsokd.KDLoss', tap='head.fc', activation='sigmoid', loss_weight=20.0),
        dict(type='mmsokd.RKDLoss', tap='neck'),
        dict(type='mmsokd.RKDLoss', student_tap='backbone.layer3', teacher_tap='backbone.layer4'),
        dict(type='mmsokd.SPLoss', tap='neck', loss_weight=3000.0),
    ],
)
def test_loss_falls_on_vectors_and_unequal_maps(term):
    values = [log['distill.loss_host'] for log in train(distiller('Distiller', term))]
    assert sum(values[-3:]) / 3 < 0.3 * values[0], values


def test_the_logs_loss_is_the_sum():
    """mmpretrain's own loss has the very name that MMEngine gives the sum."""
    (log,) = train(distiller('Distiller', dict(type='mmsokd.KDLoss', tap='head.fc')), 1)
    assert set(log) == {'loss', 'student.loss', 'distill.loss_host'}
    assert log['loss'] == pytest.approx(log['student.loss'] + log['distill.loss_host'])


def test_crd_learns_both_embeddings_and_fills_its_banks():
    model = distiller('Distiller', dict(type='mmsokd.CRDLoss', tap='neck', num_samples=PICTURES, nce_k=16))
    loss = model.terms['loss_host'].losses[0]
    assert (loss.student_embedding.in_features, loss.teacher_embedding.in_features) == (64, 96)
    before = copy.deepcopy(model.state_dict())
    train(model, 2)
    changed = {n for n, v in model.state_dict().items() if n.startswith('terms') and not torch.equal(v, before[n])}
    assert {n.removeprefix('terms.loss_host.losses.0.') for n in changed} == set(loss.state_dict())
    moved = (loss.student_bank != before['terms.loss_host.losses.0.student_bank']).any(1).nonzero().flatten()
    assert moved.tolist() == [3 * i for i in range(8)]


def test_every_pass_of_the_unrolled_search_sees_the_same_banks():
    refine = dict(type='mmsokd.FeatureAugmentationNeck')
    crd = dict(type='mmsokd.CRDLoss', tap='backbone.layer3', num_samples=PICTURES, nce_k=16)
    model = distiller('SoKDDistiller', crd, refine=refine, areas=None)
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.001))
    hook = PolicySearchHook(mode='unrolled')
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0)
    hook.before_run(runner)
    (loss,) = model.terms['loss_host'].losses
    banks = []
    loss.register_forward_pre_hook(lambda *_: banks.append(loss.student_bank.clone()))
    hook._unrolled(runner, raw_cls_batch(8, 32))
    assert len(banks) == 4
    assert all(torch.equal(bank, banks[0]) for bank in [*banks, loss.student_bank])


def test_refinement_in_place_reaches_the_logits():
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    model = distiller(
        'SoKDDistiller', dict(type='mmsokd.KDLoss', tap='head.fc', loss_weight=20.0), refine=refine, areas=None
    )
    policy = model.refine.necks['shared'].policy
    policy.beta.fill_(1.0)  # every operation fires, at full magnitude
    policy.magnitude.fill_(1.0)
    images = model.data_preprocessor(raw_cls_batch(8, 32), True)['inputs']
    teacher = model._teachers['teacher']
    plain = teacher.features(images, None)['head.fc'][0]
    refined = teacher.features(images, None, {'backbone.layer3': model.refine.begin(images).replace})['head.fc'][0]
    assert (plain - refined).abs().max() > 0.1 * plain.abs().max()
    policy.magnitude.fill_(0.5)
    logs = train(model)
    assert {'distill.loss_host', 'sokd.loss_fit', 'sokd.aug', 'sokd.norm_ratio'} <= set(logs[0])
    assert sum(log['distill.loss_host'] for log in logs[-5:]) < 0.5 * sum(log['distill.loss_host'] for log in logs[:5])


def test_wrong_configs_are_told():
    with pytest.raises(ValueError, match=r'terms\.loss_host\.adapter: .*found 5 and 7 .*same classes'):
        distiller('Distiller', dict(type='mmsokd.KDLoss', tap='head.fc'), teacher=classifier(12, classes=7))
    with pytest.raises(ValueError, match=r'refine: expected a term that compares features .*give refine=dict\(at='):
        distiller('SoKDDistiller', dict(type='mmsokd.KDLoss', tap='head.fc'), areas=None)
