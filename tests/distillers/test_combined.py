"""Any subset of SFTN's teacher, TST's pictures, SoKD's features, SKD's outputs and MTKD-SSR's stages, in one config."""

import itertools
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mmsokd.export import export_part
from mmsokd.hooks import PolicySearchHook, TSTHook
from mmsokd.registry import MODELS
from tests.builders import (
    assert_exports,
    assert_resumes,
    distiller,
    losses_of,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
    step,
    use_scope,
)
from tests.builders_training import COUNT, Pictures, differences, network, runner
from tests.distillers.test_sftn import small
from tests.hooks.test_resume import straight_and_cut
from tests.two_ranks import assert_same, on_two_ranks

METHODS = ('sftn', 'tst', 'sokd', 'skd', 'ssr')
SUBSETS = [subset for n in range(len(METHODS) + 1) for subset in itertools.combinations(METHODS, n)]
STAGES = ['backbone.layer1', 'backbone.layer2', 'backbone.layer3']
TERMS = dict(  # KD is what SKD is put in the place of
    loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'),
    loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2'),
    loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='head.fc', embed_dims=8),
    loss_ssr=dict(type='mmsokd.MTKDSSRLoss', tap=[*STAGES, 'head.fc'], head_channels=4),
)
PLUG_INS = dict(
    refine=dict(type='mmsokd.FeatureAugmentationNeck'), areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=2)
)
AT = dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer2'))


def combined(subset, teacher=None, **kwargs):
    """The config of a subset; ``teacher`` is the checkpoint of the one that SFTN trained."""
    names = ['loss_skd' if 'skd' in subset else 'loss_kd']
    names += [name for method, name in (('sokd', 'loss_hint'), ('ssr', 'loss_ssr')) if method in subset]
    return dict(
        type='mmsokd.TSTDistiller' if 'tst' in subset else 'mmsokd.Distiller',
        student=network(8),
        teacher=dict(cfg=network(16), checkpoint=str(teacher)) if 'sftn' in subset else network(16),
        terms={name: TERMS[name] for name in names},
        probe_size=32,
        **{**(PLUG_INS if 'sokd' in subset else {}), **kwargs},
    )


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """What a Runner leaves of SFTN beside its last checkpoint."""
    folder = tmp_path_factory.mktemp('sftn')
    sftn = dict(
        type='mmsokd.SFTNTeacherTrainer',
        teacher=network(16),
        student=network(8),
        stages=STAGES[:2],
        kl=dict(tap='head.fc'),
        probe_size=32,
    )
    hooks = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.StudentCheckpointHook')]
    runner(folder, model=sftn, epochs=1, validates=False, custom_hooks=hooks).train()
    return folder / 'teacher_epoch_1.pth'


def build(subset, teacher=None, **kwargs):
    torch.manual_seed(0)
    use_scope('mmpretrain')
    return MODELS.build(combined(subset, teacher, **kwargs)).train()


def learn(model, batch):
    """A step that reaches every parameter; the log."""
    total, log = model.parse_losses(losses_of(model, batch))
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    return log


# ---- a step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('subset', SUBSETS, ids=lambda subset: '+'.join(subset) or 'kd')
def test_a_step_of_any_subset(subset, teacher):
    model = build(subset, teacher)
    frozen = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    if 'sftn' in subset:
        trained = torch.load(teacher, weights_only=False)['state_dict']
        assert all(torch.equal(trained[name], value) for name, value in frozen.items())
    log = learn(model, raw_cls_batch(4, 32))
    assert all(torch.equal(frozen[name], value) for name, value in model.teacher.state_dict().items())
    assert all(value.isfinite() for name, value in log.items() if 'loss' in name)

    losses = {'student.loss', 'distill.loss_skd' if 'skd' in subset else 'distill.loss_kd'}
    told = {'skd.kl_soft_target', 'skd.kl_target_student'} if 'skd' in subset else set()
    if 'sokd' in subset:
        losses |= {f'sokd.loss_{name}' for name in ('agreement', 'area', 'anchor')} | {'distill.loss_hint'}
        told |= {f'sokd.{n}' for n in ('aug', 'norm_ratio', 'policy_entropy', 'mask_cover', 'heat_std', 'area_mean')}
    if 'ssr' in subset:
        losses |= {'distill.loss_ssr'}
        told |= {f'ssr.{name}' for name in ('channel', 'response', 'review', 'auxiliary')}
    assert set(log) == {'loss', *losses, *told}
    torch.testing.assert_close(log['loss'], sum(log[name] for name in losses))


@pytest.mark.parametrize('subset', [s for s in SUBSETS if 'skd' not in s], ids=lambda subset: '+'.join(subset) or 'kd')
def test_no_method_changes_what_another_computes(subset, teacher):
    """The student's own loss and KD's are those of the two plain networks on the pictures that the student saw."""
    model = build(subset, teacher).eval()
    seen = []
    model.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = raw_cls_batch(4, 32)
    losses = losses_of(model, batch)
    (pictures,) = seen
    assert len(pictures) == (8 if 'tst' in subset else 4)
    labels = torch.cat([sample.gt_label for sample in batch['data_samples']] * (len(pictures) // 4))
    s, t = (net(pictures, mode='tensor').detach().double() for net in (model.student, model.teacher))
    torch.testing.assert_close(losses['student.loss'].double(), F.cross_entropy(s, labels), rtol=1e-5, atol=0)
    p, q = (x.div(4).softmax(1) for x in (s, t))
    kd = 16 * (q * (q.log() - p.log())).sum(1).mean()
    torch.testing.assert_close(losses['distill.loss_kd'].double(), kd, rtol=1e-3, atol=1e-6)


EVERYWHERE = {
    'Classification': (
        lambda: network(8),
        lambda: network(16),
        lambda: raw_cls_batch(4, 32),
        (TERMS['loss_hint'], TERMS['loss_skd'], TERMS['loss_ssr']),
    ),
    'Segmentation': (
        segmentor,
        lambda: segmentor(12),
        raw_seg_batch,
        (
            dict(type='mmsokd.FitNetLoss', tap='decode_head.bottleneck'),
            dict(type='mmsokd.StudentFriendlyKDLoss', tap='decode_head.conv_seg', max_tokens=64),
            dict(type='mmsokd.MTKDSSRLoss', tap=[*STAGES, 'decode_head.conv_seg'], head_channels=8),
        ),
    ),
    'Detection': (
        lambda: retinanet(16),
        lambda: retinanet(24),
        raw_batch,
        (
            dict(type='mmsokd.FitNetLoss', tap='neck'),
            dict(type='mmsokd.StudentFriendlyKDLoss', tap='bbox_head.retina_cls', num_classes=3),
            dict(
                type='mmsokd.MTKDSSRLoss', tap=['neck', 'bbox_head.retina_cls'], num_responses=3, activation='sigmoid'
            ),
        ),
    ),
}


@pytest.mark.parametrize('plug_ins', ['beside', 'in place'])
@pytest.mark.parametrize('task', EVERYWHERE)
def test_a_step_of_each_task(task, plug_ins):
    """TST, SoKD, SKD and MTKD-SSR, the teacher's features refined beside its forward, or at a layer of it."""
    student, teacher, batch, terms = EVERYWHERE[task]
    terms = dict(zip(('loss_hint', 'loss_skd', 'loss_ssr'), terms, strict=True))
    more = PLUG_INS if plug_ins == 'beside' else AT
    size = 32 if task == 'Classification' else 64
    model = distiller(
        'TSTDistiller', student=student(), teacher=teacher(), terms=terms, probe_size=size, **more
    ).train()
    log = learn(model, batch())
    assert {f'distill.{name}' for name in terms} <= set(log)
    assert all(value.isfinite() for name, value in log.items() if 'loss' in name)
    # SKD's target is neither of both: the one number would be 0 for the teacher's outputs, the other for the student's
    assert log['skd.kl_soft_target'] > 1e-4
    assert log['skd.kl_target_student'] > 1e-4
    assert model.refine.followers == (frozenset() if plug_ins == 'beside' else frozenset(terms))


# where SFTN's branches leave the teachers of EVERYWHERE, and the logits that it compares
BRANCHES = {
    'Segmentation': dict(stages=STAGES, kl=dict(tap='decode_head.conv_seg')),
    'Detection': dict(stages=STAGES[1:], kl=dict(tap='bbox_head.retina_cls', activation='sigmoid')),
}
MAKE = {
    'Segmentation': lambda seed: raw_seg_batch(2, seed=seed),
    'Detection': lambda seed: raw_batch(2, seed=seed),
}


def sftn_teacher(task, folder):
    """The checkpoint of a teacher that SFTN has trained for two steps."""
    torch.manual_seed(0)
    student, teacher, *_ = EVERYWHERE[task]
    cfg = dict(type='mmsokd.SFTNTeacherTrainer', teacher=teacher(), student=student(), probe_size=64, **BRANCHES[task])
    trainer = MODELS.build(cfg).train()
    wrapper = OptimWrapper(torch.optim.SGD(trainer.parameters(), lr=0.01))
    for seed in range(2):
        step(trainer, wrapper, MAKE[task](seed))
    torch.save(export_part(dict(state_dict=trainer.state_dict(), meta={}), 'teacher'), folder / f'{task}.pth')
    return folder / f'{task}.pth'


def all_of(task, checkpoint):
    """SFTN's teacher, TST, SoKD, SKD and MTKD-SSR on a dense task."""
    torch.manual_seed(0)
    student, teacher, _, terms = EVERYWHERE[task]
    terms = dict(zip(('loss_hint', 'loss_skd', 'loss_ssr'), terms, strict=True))
    source = dict(cfg=teacher(), checkpoint=str(checkpoint))
    cfg = dict(student=student(), teacher=source, terms=terms, probe_size=64, **PLUG_INS)
    return distiller('TSTDistiller', **cfg).train()


@pytest.mark.parametrize('task', BRANCHES)
def test_all_of_them_train_and_resume_on_dense_tasks(task, tmp_path):
    path = sftn_teacher(task, tmp_path)
    assert_resumes(lambda: all_of(task, path), MAKE[task])
    model = all_of(task, path)
    trained = torch.load(path, weights_only=False)['state_dict']
    assert all(torch.equal(trained[name], value) for name, value in model.teacher.state_dict().items())
    learn(model, MAKE[task](0))
    student, *_ = EVERYWHERE[task]
    assert_exports(model, student())


def test_a_hook_for_distillers_beside_sftns_trainer_is_told():
    running = SimpleNamespace(model=small())
    with pytest.raises(TypeError, match=r'^model\.type: expected a distiller, such as .*found SFTNTeacherTrainer$'):
        PolicySearchHook().before_train(running)


class Searching:
    """The least of a Runner that PolicySearchHook asks for; looks at the pictures that the student is given."""

    def __init__(self, model, log_dir):
        self.model = model
        self.optim_wrapper = SimpleNamespace(optim_context=lambda _: nullcontext())
        self.iter, self.max_iters, self.max_epochs, self.cfg = 0, 10, 1, {}
        self.train_dataloader = [None]
        self.log_dir = log_dir
        self.logger = logging.getLogger('combined')
        self.seen = []
        model.student.backbone.register_forward_pre_hook(lambda _, args: self.seen.append(args[0].clone()))


def test_an_unrolled_search_sees_one_draw_of_the_pictures(tmp_path):
    """In its four passes those of the training step, which goes on as if there had been no search."""
    batch = raw_cls_batch(4, 32)
    searching, plain = (Searching(build(('tst', 'sokd')), tmp_path) for _ in range(2))
    hook = PolicySearchHook(mode='unrolled', search_iters=5)
    hook.before_run(searching)
    hook.before_train(searching)
    for i in range(3):
        searching.iter = i
        losses_of(plain.model, batch)
        hook.before_train_iter(searching, i, batch)
        losses_of(searching.model, batch)
        assert len(searching.seen) == 5
        assert all(torch.equal(pictures, plain.seen[-1]) for pictures in searching.seen)
        searching.seen.clear()
    assert not torch.equal(*plain.seen[-2:])
    assert searching.model.augmenter.draws == plain.model.augmenter.draws == 3


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_a_cut_run_is_the_whole_one(tmp_path, monkeypatch, teacher):
    """All of them, with a burst before the cut and one behind it, amid the policy's search."""
    burst = dict(type='mmsokd.TSTHook', epochs=[1, 3], lr=0.5, passes=2)
    model = combined(METHODS, teacher)
    whole, cut = straight_and_cut(tmp_path, monkeypatch, model=model, search=9, hooks=[burst])
    assert not differences(whole, cut)
    assert whole['policy_search']['shared']['state'][0]['step'] == 9
    assert whole['state_dict']['augmenter._extra_state'][:25].any()
    assert not [name for name in whole['state_dict'] if name.startswith('teacher')]


def worker(rank, folder, teacher):
    for kwargs in (dict(), dict(areas=None, **AT)):  # refined beside the teacher's forward, and in place
        train(rank, build(METHODS, teacher, **kwargs), folder)


def detector_worker(rank, folder, teacher):
    batch = raw_batch(8, seed=3)
    items = [dict(inputs=x, data_samples=y) for x, y in zip(*batch.values(), strict=True)]
    train(
        rank, all_of('Detection', teacher), folder, MAKE['Detection'], DataLoader(items, 4, collate_fn=pseudo_collate)
    )


def train(rank, model, folder, make=lambda seed: raw_cls_batch(4, 32, seed=seed), loader=None):
    """Three iterations with both hooks, on each rank's own batches: student, policy and augmenter must stay one."""
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optim_wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
    optim_wrapper.optim_context = lambda _: nullcontext()
    running = SimpleNamespace(
        model=wrapped,
        optim_wrapper=optim_wrapper,
        iter=0,
        max_iters=3,
        max_epochs=1,
        seed=3 + rank,
        cfg={},
        log_dir=folder,
        logger=logging.getLogger('combined'),
        train_dataloader=loader or DataLoader(Pictures(), batch_size=4, collate_fn=pseudo_collate),
    )
    policy = model.refine.necks['shared'].policy
    hooks = [PolicySearchHook(search_iters=3, lr=0.1, weight_decay=0.0), TSTHook(iters=[1], lr=0.5)]
    for hook in hooks:
        hook.before_run(running)
        hook.before_train(running)
    for i in range(3):
        running.iter = i
        batch = make(10 * rank + i)
        for hook in hooks:
            hook.before_train_iter(running, i, batch)
        outputs = wrapped.train_step(batch, optim_wrapper)
        for hook in hooks:
            hook.after_train_iter(running, i, batch, outputs)
    chi = torch.cat([*model.augmenter.tensors().values()])
    assert chi.any()
    assert (policy.magnitude - 0.5).abs().max() > 0
    parts = (*model.parameters(), policy.alpha, policy.beta, policy.magnitude, chi)
    assert_same(torch.cat([part.detach().flatten() for part in parts]))


@pytest.mark.slow
def test_ranks_stay_together(tmp_path, teacher):
    assert COUNT % 2 == 0
    on_two_ranks(worker, tmp_path, teacher)


@pytest.mark.slow
def test_ranks_of_a_detector_stay_together(tmp_path):
    on_two_ranks(detector_worker, tmp_path, sftn_teacher('Detection', tmp_path))
