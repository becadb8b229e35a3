"""Hosts on mmpretrain's classifiers: each trains for some steps and its loss falls."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmpretrain.structures import DataSample

import mmsokd  # noqa: F401 (registers)
from mmsokd.hooks import PolicySearchHook
from mmsokd.registry import MODELS
from tests.losses.cases import ELSEWHERE

CLASSES = 5
PICTURES = 30  # in the training set, of which a batch has 8


def classifier(base: int, classes: int = CLASSES) -> dict:
    """A ResNet18 for classes, ``base`` channels wide."""
    scope = DefaultScope.get_current_instance()
    if scope is None or scope.scope_name != 'mmpretrain':
        init_default_scope('mmpretrain')
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        backbone=dict(type='ResNet', depth=18, stem_channels=base, base_channels=base),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=8 * base,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
    )


def distiller(kind: str, term: dict, **kwargs):
    torch.manual_seed(0)
    cfg = dict(
        type=f'mmsokd.{kind}',
        student=classifier(8),
        teacher=classifier(12),
        terms=dict(loss_host=term),
        probe_size=64,
    )
    cfg.update(kwargs)
    model = MODELS.build(ConfigDict(cfg))
    see(model.teacher)
    return model.train()


@torch.no_grad()
def see(teacher) -> None:
    """Give a random teacher the batch's statistics, without which it answers the same to every picture."""
    inputs = teacher.data_preprocessor(raw_batch(), True)['inputs']
    teacher.train()
    for _ in range(20):
        teacher(inputs)
    teacher.eval()


def raw_batch(n: int = 8) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(n)]
    meta = [dict(sample_idx=3 * i, img_shape=(32, 32)) for i in range(n)]
    return dict(
        inputs=images, data_samples=[DataSample(metainfo=m).set_gt_label(i % CLASSES) for i, m in enumerate(meta)]
    )


# name: the term, and the part of its loss that may be left at the end
HOSTS = {
    'KDLoss': (dict(tap='head.fc', loss_weight=20.0), 0.3),
    'KDLoss sigmoid': (dict(tap='head.fc', activation='sigmoid', loss_weight=20.0), 0.3),
    'DKDLoss': (dict(tap='head.fc', loss_weight=5.0), 0.3),
    'DISTLoss': (dict(tap='head.fc', loss_weight=5.0), 0.3),
    'RKDLoss': (dict(tap='neck'), 0.1),
    'RKDLoss maps': (dict(tap='backbone.layer3'), 0.1),
    'RKDLoss unequal maps': (dict(student_tap='backbone.layer3', teacher_tap='backbone.layer4'), 0.1),
    'SPLoss': (dict(tap='backbone.layer3', loss_weight=3000.0), 0.3),
    'SPLoss neck': (dict(tap='neck', loss_weight=3000.0), 0.3),
    'CRDLoss': (dict(tap='neck', num_samples=PICTURES, nce_k=16), 0.5),
    'CRDLoss maps': (dict(tap='backbone.layer3', num_samples=PICTURES, nce_k=16), 0.7),
}


def train(model, steps: int = 20) -> list[dict]:
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.001))
    batch = raw_batch()
    return [{k: v.item() for k, v in model.train_step(batch, wrapper).items()} for _ in range(steps)]


@pytest.mark.parametrize('name', HOSTS)
def test_loss_falls(name):
    options, left = HOSTS[name]
    model = distiller('Distiller', dict(type=f'mmsokd.{name.split()[0]}', **options))
    values = [log['distill.loss_host'] for log in train(model, 50 if 'CRD' in name else 20)]
    assert sum(values[-3:]) / 3 < left * values[0], values


def test_every_host_has_a_row():
    hosts = {name for name, file in ELSEWHERE.items() if file in ('test_logits.py', 'test_relation.py', 'test_crd.py')}
    assert {name.split()[0] for name in HOSTS} == hosts


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
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper)
    hook.before_run(runner)
    (loss,) = model.terms['loss_host'].losses
    banks = []
    loss.register_forward_pre_hook(lambda *_: banks.append(loss.student_bank.clone()))
    hook._unrolled(runner, raw_batch())
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
    images = model.data_preprocessor(raw_batch(), True)['inputs']
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
