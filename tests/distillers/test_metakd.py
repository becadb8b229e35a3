"""Meta-KD: the refiner's gradient through a step of the student, and its training, resuming, export and ranks."""

import copy
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch.func import functional_call

from mmsokd.augment import unrolled_gradient
from mmsokd.hooks import MetaRefineHook, PolicySearchHook, unrolling
from mmsokd.hooks.unrolling import task_losses, unrolled_passes
from tests.builders import assert_exports, classifier, distiller, losses_of, make_it_speak, raw_cls_batch, step
from tests.builders_training import differences, sokd
from tests.distillers import test_host_table
from tests.distillers.test_kcd import HINTS
from tests.hooks.test_resume import straight_and_cut
from tests.two_ranks import assert_same, on_two_ranks

REFINE = dict(type='mmsokd.KnowledgeRefiner', hidden=8)
TASKS = list(HINTS)


def built(task='Classification', kind='Distiller', **kwargs):
    torch.manual_seed(0)
    row = test_host_table.TASKS[task]
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap=HINTS[task]))
    cfg = dict(student=row.student(), teacher=row.teacher(), terms=terms, refine=REFINE, probe_size=64)
    model = distiller(kind, **dict(cfg, **kwargs))
    make_it_speak(model.teacher, row.batch())
    return model.train()


def begun(model, rate=0.01, **hook):
    """The least of a Runner that the hook asks for."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=rate))
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, cfg={})
    hook = MetaRefineHook(**hook)
    hook.before_run(runner)
    hook.before_train(runner)
    return runner, hook


def weights_of(model):
    return [x.detach().clone() for neck in model.refine.necks.values() for x in neck.searched_tensors().values()]


def shaken(model):
    """In float64, pictures too, with a refiner that is not the identity any more."""
    model.double()
    model.teacher.double()
    preprocess = model.data_preprocessor.forward

    def wide(*args):
        data = preprocess(*args)
        return dict(data, inputs=data['inputs'].double())

    model.data_preprocessor.forward = wide
    generator = torch.Generator().manual_seed(1)
    for tensor in model.refine.necks['loss_hint'].searched_tensors().values():
        tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model


def after_a_step(model, data, lr, create_graph):
    """The student's task loss once its weights have made a step on the training loss: one line after the other."""
    names, weights = zip(*model.named_parameters(), strict=True)
    total = model.parse_losses(model(**data, mode='loss'))[0]
    slopes = torch.autograd.grad(total, weights, create_graph=create_graph)
    moved = {
        name.removeprefix('student.'): weight - lr * slope
        for name, weight, slope in zip(names, weights, slopes, strict=True)
        if name.startswith('student.')
    }
    return model.parse_losses(functional_call(model.student, moved, (), dict(data, mode='loss')))[0]


# with areas, too, of which some parts are in float32
@pytest.mark.parametrize(('kind', 'tolerance'), [('Distiller', 1e-7), ('SoKDDistiller', 1e-2)])
def test_gradient_is_that_of_the_task_loss_after_a_step(kind, tolerance, monkeypatch):
    model, lr = shaken(built(kind=kind)), 0.05
    runner, _ = begun(model)
    batch, neck = raw_cls_batch(4), model.refine.necks['loss_hint']
    found = unrolled_passes(runner, batch, {'loss_hint': neck}, lr, task_losses)['loss_hint']
    monkeypatch.setattr(unrolling, 'unrolled_gradient', partial(unrolled_gradient, scale=1e-5))
    exact = unrolled_passes(runner, batch, {'loss_hint': neck}, lr, task_losses)['loss_hint']
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with neck.exposed() as chi:
        expected = torch.autograd.grad(after_a_step(model, data, lr, True), list(chi.values()))
    assert all(slope.abs().max() > 1e-9 for slope in expected)
    for ours, theirs in zip(exact.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * tolerance, atol=tolerance * theirs.abs().max().item())
    # DARTS's step of 0.01 meets some of the ReLUs' corners
    whole = [torch.cat([x.flatten() for x in values]) for values in (found.values(), expected)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.95

    # and by finite differences of that loss itself
    directions = {name: torch.randn_like(x) for name, x in neck.searched_tensors().items()}
    values = []
    for sign in (1, -2):
        for name, x in neck.searched_tensors().items():
            x.add_(sign * 1e-6 * directions[name])
        with neck.exposed():
            values.append(after_a_step(model, data, lr, False).item())
    slope = sum((exact[name] * directions[name]).sum().item() for name in exact)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=max(1e-4, tolerance))


def test_the_passes_leave_no_trace():
    model = built()
    runner, _ = begun(model)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = unrolled_passes(runner, raw_cls_batch(4), dict(model.refine.necks.items()), 0.01, task_losses)
    assert found['loss_hint'].keys() == {f'{n}_0' for n in ('reduce', 'reduce_bias', 'expand', 'expand_bias')}
    assert not differences(before, model.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert not model.refine.necks['loss_hint'].is_exposed


def test_every_pass_sees_one_function(monkeypatch):
    """Also where a forward draws, and moves a buffer that the next one reads, as a memory bank is."""
    model = built()
    runner, _ = begun(model)
    model.register_buffer('bank', torch.zeros(()))

    def disturbed(_module, args):
        model.bank += 1
        return (args[0] + model.bank + torch.rand_like(args[0]),)

    model.student.backbone.conv1.register_forward_pre_hook(disturbed)
    values = []

    def passes(loss, weights, chi, outer, **_):
        values.extend([loss().item(), outer().item(), loss().item(), outer().item()])
        return [torch.zeros_like(leaf) for leaf in chi]

    monkeypatch.setattr(unrolling, 'unrolled_gradient', passes)
    state = torch.get_rng_state()
    unrolled_passes(runner, raw_cls_batch(4), dict(model.refine.necks.items()), 0.01, task_losses)
    assert values[:2] == values[2:]
    assert model.bank == 0
    assert torch.equal(state, torch.get_rng_state())  # the step that follows draws as if they had not been


@pytest.mark.parametrize('task', TASKS)
def test_trains(task):
    """The refiner moves in the steps of its interval alone, and by its hook alone."""
    model = built(task)
    runner, hook = begun(model, rate=1e-4, interval=2, lr=0.05, virtual_lr=1e-4)
    batch, moves = test_host_table.TASKS[task].batch(), []
    for i in range(4):
        runner.iter, before = i, weights_of(model)
        hook.before_train_iter(runner, i, batch)
        between = weights_of(model)
        log = step(model, runner.optim_wrapper, batch)
        assert not differences(between, weights_of(model))
        moves.append(bool(differences(before, between)))
        assert log['distill.loss_hint'].isfinite()
        assert log['sokd.norm_ratio'] > 0
        assert 'sokd.policy_entropy' not in log
    assert moves == [True, False, True, False]
    assert log['sokd.norm_ratio'] != 1
    assert not {'refine'} & {name.split('.')[0] for name, _ in model.named_parameters()}


def test_what_it_learns_helps_the_task():
    """On one batch: the task loss after a virtual step is lower than with the teacher's feature as it is."""
    model = built()
    runner, hook = begun(model, lr=0.02, virtual_lr=0.05)
    batch = raw_cls_batch(8)
    data = model.data_preprocessor(copy.deepcopy(batch), True)

    def judged():
        return after_a_step(model, data, 0.05, False).item()

    before = judged()
    for _ in range(10):
        hook.before_train_iter(runner, 0, batch)
    assert judged() < before - 1e-4


def test_each_term_has_its_own_and_logits_none():
    terms = dict(
        loss_a=dict(type='mmsokd.FitNetLoss', tap=['backbone.layer2', 'backbone.layer3']),
        loss_b=dict(type='mmsokd.ATLoss', tap='backbone.layer3'),
        loss_plain=dict(type='mmsokd.ATLoss', tap='backbone.layer3', refine=False),
        loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'),
    )
    model = built(terms=terms)
    widths = {name: [x.shape[0] for x in list(neck.buffers())[2::4]] for name, neck in model.refine.necks.items()}
    assert widths == dict(loss_a=[24, 48], loss_b=[48])
    found = losses_of(model, raw_cls_batch(4))
    assert {f'distill.{name}' for name in terms} <= set(found)


def test_the_refiner_vanishes_from_the_exported_student():
    model = built()
    saved = model.state_dict()
    assert [name for name in saved if name.startswith('refine.necks.loss_hint.')]
    assert_exports(model, classifier(8))


@pytest.mark.parametrize('ema', [False, True])
def test_a_cut_run_is_the_whole_one(tmp_path, monkeypatch, ema):
    hooks = [dict(type='mmsokd.SeedHook'), dict(type='mmsokd.PolicySearchHook')]
    hooks += [dict(type='mmsokd.MetaRefineHook', interval=2, lr=0.01)]
    hooks += [dict(type='EMAHook', momentum=0.1, begin_iter=2)] if ema else []
    model = sokd(refine=REFINE)
    whole, cut = straight_and_cut(tmp_path, monkeypatch, model=model, custom_hooks=hooks)
    assert not differences(whole, cut)
    assert whole['meta_refine']['loss_mgd']['state'][0]['step'] == 6
    assert whole['state_dict']['refine.necks.loss_mgd.expand_0'].any()


def test_the_step_that_follows_finds_its_batch_as_it_was():
    """Some preprocessors change the annotations in place, as mmdet's batch augmentations do the boxes."""
    model = built()
    runner, _ = begun(model)
    preprocess = model.data_preprocessor.forward

    def careless(data, training=False):
        for sample in data['data_samples']:
            sample.set_gt_label(int(sample.gt_label + 1) % 5)
        return preprocess(data, training)

    model.data_preprocessor.forward = careless
    batch = raw_cls_batch(4)
    before = [int(sample.gt_label) for sample in batch['data_samples']]
    unrolled_passes(runner, batch, dict(model.refine.necks.items()), 0.01, task_losses)
    assert [int(sample.gt_label) for sample in batch['data_samples']] == before


def test_the_hook_judges_by_the_students_task_loss(monkeypatch):
    """Not by the training's, of which the terms are a part that a refiner could please itself."""
    calls = []

    def passes(*args):
        calls.append(args)
        return unrolled_passes(*args)

    monkeypatch.setattr('mmsokd.hooks.meta_refine.unrolled_passes', passes)
    runner, hook = begun(built())
    hook.before_train_iter(runner, 0, raw_cls_batch(4))
    assert [args[4] for args in calls] == [task_losses]


def worker(rank, folder):
    """Four iterations on each rank's own batches: student and refiner must stay one."""
    model = built()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    runner, hook = begun(model, interval=2, lr=0.01)
    runner.model = wrapped
    for i in range(4):
        runner.iter, batch = i, raw_cls_batch(4, seed=10 * rank + i)
        hook.before_train_iter(runner, i, batch)
        wrapped.train_step(batch, runner.optim_wrapper)
    own = weights_of(model)
    assert own[2].any()
    assert_same(torch.cat([x.detach().flatten() for x in (*model.parameters(), *own)]))


@pytest.mark.slow
def test_ranks_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


def test_the_policys_hook_rests_beside_it():
    model = built()
    for mode in ('fused', 'unrolled'):
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, max_iters=10, cfg={})
        hook = PolicySearchHook(mode=mode, search_iters=5)
        hook.before_run(runner)
        hook.before_train(runner)
        before = weights_of(model)
        hook.before_train_iter(runner, 0, raw_cls_batch(4))
        hook.after_train_iter(runner, 0, raw_cls_batch(4), step(model, wrapper, raw_cls_batch(4)))
        assert not differences(before, weights_of(model))


def test_a_step_with_an_overflow_is_left_out(monkeypatch):
    model, told = built(), []
    runner, hook = begun(model)
    monkeypatch.setattr('mmsokd.hooks.meta_refine.print_log', lambda text, *_: told.append(text))
    nan = {
        name: torch.full_like(x, torch.nan) for name, x in model.refine.necks['loss_hint'].searched_tensors().items()
    }
    monkeypatch.setattr('mmsokd.hooks.meta_refine.unrolled_passes', lambda *_: dict(loss_hint=nan))
    before = weights_of(model)
    for _ in range(2):
        hook.before_train_iter(runner, 0, raw_cls_batch(4))
    assert not differences(before, weights_of(model))
    assert len(told) == 1
    assert told[0].startswith('refiner loss_hint: a step is left out')


def test_wrong_configs_are_told():
    with pytest.raises(ValueError, match=r'^refine: expected a term that compares features'):
        built(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc')))
    with pytest.raises(ValueError, match=r'^refine\.at: '):
        built(refine=dict(REFINE, at='backbone.layer3'))
    for refine, found in ((None, 'None'), (dict(type='mmsokd.FeatureAugmentationNeck'), "{'FeatureAugmentationNeck'}")):
        message = f"refine=dict(type='mmsokd.KnowledgeRefiner'), found {found}"
        with pytest.raises(ValueError, match='^MetaRefineHook: .*' + re.escape(message)):
            begun(built(refine=refine))
    runner, hook = begun(built())
    runner.cfg = Config(dict(activation_checkpointing=['backbone']))
    with pytest.raises(ValueError, match=r'^MetaRefineHook: expected no activation checkpointing'):
        hook.before_train(runner)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(interval=0), 'interval: expected an integer >= 1, found 0'),
        (dict(lr=-1), 'lr: expected a number >= 0, found -1'),
        (dict(virtual_lr='x'), "virtual_lr: expected a number >= 0, found 'x'"),
        (dict(betas=(0.5, 1)), 'betas: expected'),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(f'MetaRefineHook.{message}')):
        MetaRefineHook(**wrong)
