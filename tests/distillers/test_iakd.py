"""IAKD: stages of the student make way for the frozen teacher's, by chance."""

import copy
import re

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

from mmsokd.augment.policy import Seeded
from tests.builders import (
    assert_exports,
    classifier,
    distiller,
    losses_of,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
    step,
)
from tests.builders_training import differences, network
from tests.hooks.test_resume import straight_and_cut
from tests.losses.common import assert_slopes, shake
from tests.reference.iakd import hybrid
from tests.two_ranks import assert_same, on_two_ranks

STAGES = ['backbone.layer2', 'backbone.layer3']
TASKS = {
    'Classification': (lambda: classifier(8), lambda: classifier(12), lambda: raw_cls_batch(8, 32)),
    'Segmentation': (segmentor, lambda: segmentor(12), lambda: raw_seg_batch(4)),
    'Detection': (lambda: retinanet(16), lambda: retinanet(24, base=12), lambda: raw_batch(3)),
}


@pytest.fixture(autouse=True)
def at():
    """Sets the training's clock, which is put right afterwards."""
    hub = MessageHub.get_current_instance()
    before = {name: hub.runtime_info.get(name, 0) for name in ('iter', 'max_iters')}
    hub.update_info('iter', 0)

    def set_to(iteration, of=None):
        hub.update_info('iter', iteration)
        if of is not None:
            hub.update_info('max_iters', of)

    yield set_to
    for name, value in before.items():
        hub.update_info(name, value)


def built(student=lambda: network(8), teacher=lambda: network(16), **kwargs):
    torch.manual_seed(0)
    cfg = dict(stages=STAGES, probability=0.5, terms=None, probe_size=64)
    return distiller('IAKDDistiller', **dict(cfg, student=student(), teacher=teacher(), **kwargs)).train()


def batch(n=4, seed=0):
    return raw_cls_batch(n, 32, seed=seed)


@pytest.mark.parametrize('task', TASKS)
def test_trains(task, at):
    """Swapped or not, the student's task loss falls, and the teacher stays what it was."""
    student, teacher, make = TASKS[task]
    model = built(student, teacher)
    before = copy.deepcopy(model.teacher.state_dict())
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.003))
    values, parts = [], []
    for i in range(24):
        at(i)
        log = step(model, wrapper, make())
        values.append(log['loss'].item())
        parts.append(log['iakd.swapped'].item())
    assert sum(values[-6:]) < 0.99 * sum(values[:6]), values  # a segmentor's random labels are hard to learn
    assert {0.0, 0.5, 1.0} == set(parts)
    assert all(torch.equal(value, model.teacher.state_dict()[name]) for name, value in before.items())
    assert not any(module.training for module in model.teacher.modules())


# ---- what a swapped student computes --------------------------------------------------------------------------------


def tensors_of(module):
    return [value for name, value in module.state_dict().items() if not name.endswith('num_batches_tracked')]


def test_a_swapped_student_computes_what_the_reference_does():
    model = built(stages=STAGES[:1], teacher=lambda: wider()).eval()
    for module in (model.student, model.teacher, model.swap):
        shake(module)
        for name, value in module.named_buffers():
            if name.endswith('running_var'):
                value.uniform_(0.5, 2.0)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    plain = model.student(images)
    with model.swap.swapped(model.student, [True]):
        found = model.student(images)
    assert torch.equal(model.student(images), plain)
    (seam,) = model.swap.seams
    parts = {name: tensors_of(module) for name, module in model.student.backbone.named_children()}
    parts['fc'] = tensors_of(model.student.head.fc)
    layer = tensors_of(model.teacher.backbone.layer2)
    expected = hybrid(
        parts, layer, tensors_of(seam.entry), tensors_of(seam.exit), images, (4, 4, 4, 8), (6, 6, 10, 16), 5
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (found - plain).abs().max() > 1e-3


def wider():
    model = network(16)
    model['backbone']['widths'] = (6, 6, 10, 16)
    return model


def test_gradients_through_the_teachers_stages_equal_finite_differences():
    """Of what lies before a seam, at it and behind it; in training mode, with both stages swapped."""
    model = built(teacher=wider, probability=1.0)
    for module in (model.student, model.teacher, model.swap):
        shake(module)
    model.train()
    data = model.data_preprocessor(batch(), True)
    data['inputs'] = data['inputs'].double()

    def value():
        return model(**copy.deepcopy(data), mode='loss')['student.loss']

    value().backward()
    first, second = model.swap.seams
    named = {
        'before': model.student.backbone.layer1[0].conv1[0].weight,
        'entry': first.entry.conv.conv.weight,
        'between': first.exit.conv.bn.weight,
        'second entry': second.entry.conv.conv.weight,
        'exit': second.exit.conv.conv.weight,
        'behind': model.student.head.fc.weight,
    }
    assert all(x.grad.abs().sum() > 0 for x in named.values())
    assert_slopes(lambda: value().item(), named.items())
    for stage in STAGES:
        assert not any(p.grad.any() for p in model.student.get_submodule(stage).parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_no_relu_makes_what_is_signed():
    """A WRN's stages give sums, behind which the next stage has its ReLU."""

    def wrn(k):
        model = classifier(backbone=dict(type='mmsokd.WideResNet', depth=10, widen_factor=k))
        model['head']['in_channels'] = 64 * k
        return model

    model = built(lambda: wrn(1), lambda: wrn(2), stages=['backbone.layer2'], probe_size=32)
    (seam,) = model.swap.seams
    assert not seam.entry.conv.with_activation
    assert not seam.exit.conv.with_activation
    (seam,) = built(stages=['backbone.layer2']).swap.seams
    assert seam.entry.conv.with_activation
    assert seam.exit.conv.with_activation


def test_nobody_is_forgotten_and_what_rests_has_a_zero(at):
    model = built()
    seen = set()
    for i in range(12):
        at(i)
        model.zero_grad()
        losses = losses_of(model, batch())
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        drawn = tuple(model.swap.draw())
        seen.add(drawn)
        assert losses['iakd.swapped'] == sum(drawn) / 2
        assert all(p.grad is not None for p in model.parameters())
        for seam, is_swapped in zip(model.swap.seams, drawn, strict=True):
            theirs = [bool(p.grad.any()) for p in seam.parameters()]
            ours = [bool(p.grad.any()) for p in model.student.get_submodule(seam.stage.student).parameters()]
            assert any(theirs) == is_swapped
            assert any(ours) != is_swapped
    assert len(seen) == 4


# ---- the draws ------------------------------------------------------------------------------------------------------


def test_draws_are_as_often_as_they_should_and_of_one_iteration_the_same(at):
    model = built(probability=0.3)
    draws = []
    for i in range(3000):
        at(i)
        draws.append(model.swap.draw())
    at(7)
    assert model.swap.draw() == draws[7]
    table = torch.tensor(draws).double()
    torch.testing.assert_close(table.mean(0), torch.full((2,), 0.3).double(), atol=0.03, rtol=0)
    centred = table - table.mean(0)
    together = [(centred[:, 0] * centred[:, 1]).mean(), *(centred[1:] * centred[:-1]).mean(0)]  # stages; successive
    assert all(abs(value) < 0.02 for value in together)


def test_draws_follow_the_seed():
    model = built()
    assert isinstance(model.swap, Seeded)  # SeedHook tells it

    def draws(seed):
        other = built()
        other.swap.seed = seed
        hub = MessageHub.get_current_instance()
        found = []
        for i in range(20):
            hub.update_info('iter', i)
            found += other.swap.draw()
        return found

    assert draws(1) == draws(1) != draws(2)


def test_probability_is_scheduled_to_zero(at):
    model = distiller('IAKDDistiller', student=network(8), teacher=network(16), terms=None, stages=STAGES).train()
    at(0, of=100)
    shares = []
    for i in range(100):
        at(i)
        shares.append(sum(model.swap.draw()))
    assert sum(shares[:40]) > 20
    assert not any(shares[75:])


def test_nothing_is_swapped_in_eval_mode(at):
    model = built(probability=1.0).eval()
    plain = model.student(**model.student.data_preprocessor(batch(), True), mode='loss')['loss']
    losses = losses_of(model, batch())
    assert losses['iakd.swapped'] == 0
    assert losses['student.loss'] == plain


# ---- what is saved, and who trains with it --------------------------------------------------------------------------


def test_what_is_exported_is_the_plain_student():
    model = built()
    state = model.state_dict()
    assert {name.split('.')[0] for name in state} == {'student', 'swap'}
    assert {name.split('.')[3] for name in state if name.startswith('swap.')} == {'entry', 'exit'}
    assert_exports(model, network(8))


def test_a_copy_has_seams_of_its_own_and_the_same_teacher():
    model = built(probability=1.0)
    losses_of(model, batch())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert other.teacher is model.teacher
    assert any(p.any() for p in model.swap.parameters())
    assert losses_of(other, batch())['student.loss'] != losses_of(model, batch())['student.loss']


@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook', momentum=0.1, begin_iter=2)]], ids=['alone', 'ema'])
def test_a_cut_run_is_the_whole_one(tmp_path, monkeypatch, hooks):
    """Beside SoKD and its search, with one of the stages tapped."""
    model = dict(
        type='mmsokd.IAKDDistiller',
        student=network(8),
        teacher=network(16),
        stages=STAGES,
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2')),
        refine=dict(type='mmsokd.FeatureAugmentationNeck'),
        probe_size=32,
    )
    whole, cut = straight_and_cut(tmp_path, monkeypatch, model=model, search=4, hooks=hooks)
    assert not differences(whole, cut)
    shares, _ = whole['log']['train/iakd.swapped']
    assert len(set(shares[:9])) > 1
    assert not any(shares[9:])


def worker(rank, folder):
    model = built()
    torch.manual_seed(rank)  # as MMEngine's diff_rank_seed does
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
    drawn = []
    for i in range(12):
        MessageHub.get_current_instance().update_info('iter', i)
        wrapped.train_step(batch(seed=10 * rank + i), wrapper)
        drawn.append(model.swap.draw())
    assert len({tuple(row) for row in drawn}) == 4
    assert_same(torch.tensor(drawn))
    assert_same(torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.slow
def test_ranks_draw_alike_and_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


# ---- beside others --------------------------------------------------------------------------------------------------

HINT = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2'))
SOKD = dict(
    beside=dict(
        refine=dict(type='mmsokd.FeatureAugmentationNeck'),
        areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=2),
        terms=dict(HINT, loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc')),
    ),
    inside=dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer2'), terms=HINT),
)


@pytest.mark.parametrize('kind', SOKD)
def test_sokd_acts_beside_it(kind):
    model = built(probability=1.0, **SOKD[kind])
    model.refine.necks['shared'].searching = True
    losses = losses_of(model, batch())
    model.parse_losses(losses)[0].backward()
    assert losses['iakd.swapped'] == 1
    assert losses['sokd.aug'] > 0
    assert model.refine.necks['shared'].pop_gradient() is not None
    assert all(p.grad is not None for p in model.parameters())


def test_a_teacher_that_somebody_set_to_train_is_swapped_in_at_rest():
    """A stage in training mode would count on the student's batches."""
    model = built(probability=1.0)
    model.teacher.train()
    before = {name: value.clone() for name, value in model.teacher.named_buffers()}
    losses_of(model, batch())
    assert not any(module.training for module in model.teacher.modules())
    assert all(torch.equal(before[name], value) for name, value in model.teacher.named_buffers())


def test_a_term_sees_the_stage_that_is_swapped_in():
    seen = []
    model = built(probability=1.0, terms=HINT)
    model.swap.seams[0].exit.register_forward_hook(lambda _, args, out: seen.append(out))
    select = model.terms['loss_hint'].select
    model.terms['loss_hint'].select = lambda student, *rest: seen.append(student[0]) or select(student, *rest)
    losses_of(model, batch())
    assert seen[0] is seen[1]


def test_stages_checkpointed_themselves_are_swapped_and_others_refused(at):
    model = built(probability=1.0)
    plain = losses_of(model, batch())['student.loss'].item()
    turn_on_activation_checkpointing(model, ['student.backbone.layer1', 'student.backbone.layer2'])
    checkpointed = model.student.backbone.layer2.forward
    loss = losses_of(model, batch())['student.loss']
    loss.backward()
    assert loss.item() == pytest.approx(plain, rel=1e-6)
    assert model.student.backbone.layer2.forward is checkpointed
    turn_on_activation_checkpointing(model, ['student.backbone'])
    with pytest.raises(ValueError, match=r'^stages\[0\]: expected a stage outside of checkpointed layers, .*backbone'):
        losses_of(model, batch())


def test_a_stage_within_a_checkpointed_block_is_refused():
    """Its forward runs again in the backward, when the stage is the student's."""
    inside = dict(stages=['backbone.layer2.0.conv2'])
    built(lambda: classifier(8), lambda: classifier(12), **inside)

    def student():
        cfg = classifier(8)
        return dict(cfg, backbone=dict(cfg['backbone'], with_cp=True))

    message = r"^stages\[0\]\.student: expected a stage outside of checkpointed blocks, .* within 'backbone\.layer2\.0'"
    with pytest.raises(ValueError, match=message):
        built(student, lambda: classifier(12), **inside)
    built(student, lambda: classifier(12), stages=['backbone.layer2.0'])


# ---- what is refused ------------------------------------------------------------------------------------------------


SELF = dict(type='mmsokd.FitNetLoss', teacher='student')


def apart(student, teacher='backbone.layer2'):
    return [dict(student=student, teacher=teacher)]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(stages=None), "stages: expected a list of paths, such as ['backbone.layer1'], found None"),
        (dict(stages=[3]), 'stages[0]: expected a path or dict(teacher=..., student=...), found 3'),
        (
            dict(stages=['backbone.layer7']),
            'stages[0].student: expected the path of a submodule of ImageClassifier, '
            "found 'backbone.layer7'; nearest: ['backbone.layer",
        ),
        (
            dict(stages=apart('backbone.layer2', 'backbone.lyer2')),
            'stages[0].teacher: expected the path of a submodule',
        ),
        (dict(stages=['backbone.layer2[0]']), 'stages[0].teacher: expected a path without an index, found'),
        (
            dict(stages=apart('backbone.layer1')),
            "stages[0]: expected two layers of one stride, found 1 in the student's "
            "'backbone.layer1' and 2 in the teacher's 'backbone.layer2'",
        ),
        (dict(stages=['neck']), 'stages[0].student: expected a layer that takes one map (N, C, H, W) and nothing else'),
        (
            dict(stages=['backbone.layer2', 'backbone.layer2.0']),
            "stages[1].student: expected a stage beside the others, found 'backbone.layer2.0' within stages[0].student",
        ),
        (dict(stages=['backbone.layer2'] * 2), 'stages[0].student: expected a stage beside the others'),
        (dict(probability=1.5), 'probability: expected at most 1, found 1.5 in 1.5'),
        (dict(probability='x'), 'probability: expected a number >= 0'),
        (dict(transform=dict(type='mmsokd.ConvAdaptor')), 'transform.type: expected a registered name'),
        (dict(transform=dict(type='mmsokd.LinearAdapter')), 'transform.type: expected an adapter of maps, such as'),
        (dict(transform=dict(type='mmsokd.ResizeAdapter')), 'transform.type: expected an adapter of maps, such as'),
        (
            dict(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2.0.conv1'))),
            "terms.loss_hint.tap: expected a layer that runs in every step, found 'backbone.layer2.0.conv1' within "
            "'backbone.layer2'",
        ),
        (
            dict(terms=dict(loss_self=dict(SELF, student_tap='backbone.layer2', teacher_tap='backbone.layer2.0'))),
            "terms.loss_self.teacher_tap: expected a layer that runs in every step, found 'backbone.layer2.0' within ",
        ),
        (
            dict(transform=dict(type='mmsokd.ConvAdapter', resize='bilinear')),
            "transform.resize: expected none, since both networks have maps of one size at a seam, found 'bilinear'",
        ),
        (dict(teacher=None), 'teacher: expected one, whose stages are swapped in, found none'),
        (dict(swap=3), "model.swap: expected one of ['areas', "),
    ],
)
def test_it_is_refused(kwargs, message):
    if 'teacher' in kwargs:
        kwargs = {'teacher': lambda: None}
    with pytest.raises((ValueError, KeyError), match='^' + re.escape(message)):
        built(**kwargs)


def test_several_teachers_are_refused():
    term = dict(type='mmsokd.KDLoss', tap='head.fc', teacher='a')
    with pytest.raises(ValueError, match=r"^teacher: expected one, whose stages are swapped in, found \['a', 'b'\]"):
        distiller(
            'IAKDDistiller',
            student=network(8),
            teacher=None,
            teachers=dict(a=network(16), b=network(16)),
            terms=dict(loss_a=term, loss_b=dict(term, teacher='b')),
            stages=STAGES,
            probe_size=32,
        )
