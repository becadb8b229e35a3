"""EKD: the teacher learns beside its student."""

import copy
import re

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from mmsokd.export import export_part, export_student
from mmsokd.registry import MODELS
from tests.builders import (
    assert_resumes,
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
from tests.losses.common import assert_slopes
from tests.reference import logits as reference
from tests.two_ranks import assert_same, on_two_ranks

STAGES = ['backbone.layer2', 'backbone.layer3']
GUIDE = dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
TERMS = dict(
    loss_guide=dict(type='mmsokd.FitNetLoss', tap=STAGES, adapter=GUIDE),
    loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'),
)
GUIDED = dict(loss_guide=TERMS['loss_guide'])
DPD = dict(loss_dpd=dict(type='mmsokd.DPDLoss', tap='head.fc', alpha=2.0, tau=3.0))
TASKS = {
    'Classification': (lambda: classifier(8), lambda: classifier(12), lambda: raw_cls_batch(8, 32), TERMS),
    'Segmentation': (segmentor, lambda: segmentor(12), lambda: raw_seg_batch(4), GUIDED),
    'Detection': (lambda: retinanet(16), lambda: retinanet(24, base=12), lambda: raw_batch(3), GUIDED),
}


def built(student=lambda: network(8), online=lambda: network(16), **kwargs):
    torch.manual_seed(0)
    cfg = dict(student=student(), online_teacher=online(), teacher=None, terms=TERMS, probe_size=64)
    return distiller('OnlineDistiller', **dict(cfg, **kwargs)).train()


def batch(n=4, seed=0):
    return raw_cls_batch(n, 32, seed=seed)


def summed(losses, prefix=''):
    """Of all that MMEngine sums, whose names begin so."""
    found = [value for name, value in losses.items() if 'loss' in name and name.startswith(prefix)]
    return sum(sum(value) if isinstance(value, list) else value for value in found)


@pytest.mark.parametrize('task', TASKS)
def test_both_learn(task):
    student, teacher, make, terms = TASKS[task]
    model = built(student, teacher, terms=terms)
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.003))
    logs = [step(model, wrapper, make()) for _ in range(16)]

    def fell(*prefixes):
        """Of the sum, without what begins so."""
        first, last = (
            sum(float(summed(log) - sum(summed(log, prefix) for prefix in prefixes)) for log in part)
            for part in (logs[:3], logs[-3:])
        )
        return last < 0.99 * first

    assert fell('distill.')  # of both
    assert fell('distill.', 'online_teacher.')  # of the student


def test_values_are_those_of_the_two_plain_networks():
    """In training mode: the teacher's own loss, the student's, and KD by the slow twin on the logits of this step."""
    model = built(terms=dict(loss_kd=TERMS['loss_kd'])).double()
    data = model.data_preprocessor(batch(), True)
    data['inputs'] = data['inputs'].double()
    plain = copy.deepcopy(model.student), copy.deepcopy(model.online_teacher)
    losses = model(**copy.deepcopy(data), mode='loss')
    assert set(losses) == {'student.loss', 'online_teacher.loss', 'distill.loss_kd'}
    own = [net(**copy.deepcopy(data), mode='loss')['loss'] for net in copy.deepcopy(plain)]
    torch.testing.assert_close([losses['student.loss'], losses['online_teacher.loss']], own)
    logits = [net(data['inputs']).detach().numpy() for net in plain]
    assert losses['distill.loss_kd'].item() == pytest.approx(reference.kd(*logits, 4.0), rel=1e-9)


def test_the_teacher_learns_from_its_own_loss_alone_and_the_student_from_the_rest():
    """Slopes by finite differences."""
    model = built().double()
    data = model.data_preprocessor(batch(), True)
    data['inputs'] = data['inputs'].double()

    def values():
        return model(**copy.deepcopy(data), mode='loss')

    summed(values()).backward()
    theirs = model.online_teacher.backbone.layer2[0].conv1[0].weight
    ours = {
        'student': model.student.backbone.layer2[0].conv1[0].weight,
        'guide': model.terms['loss_guide'].adapter[0].conv.conv.weight,
    }
    assert_slopes(lambda: summed(values(), 'online_teacher.').item(), dict(teacher=theirs).items())
    assert_slopes(lambda: (summed(values()) - summed(values(), 'online_teacher.')).item(), ours.items())
    before = summed(values(), 'distill.').item()
    with torch.no_grad():
        theirs.add_(0.1 * torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0)))
    assert summed(values(), 'distill.').item() != before  # though it takes no gradient, it is this step's teacher


def test_the_teachers_annotations_are_its_own():
    """Some heads change them in place; the student's turn is next."""
    model = built()
    plain = losses_of(model, batch())['student.loss']
    forward = model.online_teacher.forward

    def careless(inputs, data_samples=None, **kwargs):
        losses = forward(inputs, data_samples, **kwargs)
        for sample in data_samples or []:
            sample.set_gt_label(0)
        return losses

    model.online_teacher.forward = careless
    torch.testing.assert_close(losses_of(model, batch())['student.loss'], plain)


# ---- both ways ------------------------------------------------------------------------------------------------------


def in_double(model):
    """The model's batch, in float64 as the model is then."""
    model.double()
    data = model.data_preprocessor(batch(), True)
    data['inputs'] = data['inputs'].double()
    return data


def test_a_mutual_gate_opens_each_way_where_the_other_is_better():
    """DPD by the slow twin, each direction with its own weights: what is above 1 in the one is below 1 in the other."""
    model = built(terms=dict(loss_dpd=dict(DPD['loss_dpd'], loss_weight=0.3)), mutual=['loss_dpd'])
    data = in_double(model)
    plain = copy.deepcopy((model.student, model.online_teacher))
    losses = model(**copy.deepcopy(data), mode='loss')
    assert set(losses) == {
        'student.loss', 'online_teacher.loss', 'distill.loss_dpd', 'mutual.loss_dpd', 'dpd.effective',
    }  # fmt: skip
    s, t = (net(data['inputs']).detach().numpy() for net in plain)
    labels = [sample.gt_label.item() for sample in data['data_samples']]
    for name, (one, other) in {'distill': (s, t), 'mutual': (t, s)}.items():
        gate = reference.dpd_weights(one, other, labels, 2.0)
        expected = 0.3 * reference.weighted_kd(one, other, gate, 3.0)
        assert losses[f'{name}.loss_dpd'].item() == pytest.approx(expected, rel=1e-9)
    gates = [reference.dpd_weights(*pair, labels, 2.0) for pair in ((s, t), (t, s))]
    assert [a * b for a, b in zip(*gates, strict=True)] == pytest.approx([1.0] * len(labels))
    assert max(gates[0]) > 1.01
    assert max(gates[1]) > 1.01


def test_a_mutual_term_teaches_each_of_the_two_by_its_own_summand():
    """Slopes by finite differences, of KD, whose gate is no constant that they would miss."""
    model = built(terms=dict(loss_kd=TERMS['loss_kd']), mutual=['loss_kd'])
    data = in_double(model)

    def values():
        return model(**copy.deepcopy(data), mode='loss')

    nets = dict(distill=model.student, mutual=model.online_teacher)
    weights = {name: net.backbone.layer2[0].conv1[0].weight for name, net in nets.items()}
    for name, weight in weights.items():
        model.zero_grad()
        summed(values(), f'{name}.').backward()
        learns = {key for key, net in nets.items() if any(p.grad is not None for p in net.parameters())}
        assert learns == {name}
        assert_slopes(lambda name=name: summed(values(), f'{name}.').item(), {name: weight}.items())


@pytest.mark.parametrize('side', ['student', 'online_teacher'])
def test_each_of_the_two_comes_to_the_other(side):
    """The summand falls that teaches ``side``, by its doing alone."""
    model = built(terms=DPD, mutual=['loss_dpd'])
    optimizer = torch.optim.Adam(getattr(model, side).parameters(), lr=0.005)
    name = {'student': 'distill', 'online_teacher': 'mutual'}[side]
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        value = summed(losses_of(model, batch(8)), f'{name}.')
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


def test_a_mutual_term_rests_both_ways_and_is_none_in_eval_mode():
    rest = [(0.0, 0.0), (0.5, 1.0)]
    model = built(terms=dict(loss_dpd=dict(DPD['loss_dpd'], loss_weight=rest)), mutual=['loss_dpd'])
    losses = losses_of(model, batch())
    assert losses['distill.loss_dpd'] == losses['mutual.loss_dpd'] == 0
    summed(losses).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert 'mutual.loss_dpd' not in losses_of(built(terms=DPD, mutual=['loss_dpd']).eval(), batch())


@pytest.mark.parametrize('task', ['Segmentation', 'Detection'])
def test_dense_predictions_teach_both_ways(task):
    student, teacher, make, _ = TASKS[task]
    term = dict(type='mmsokd.DPDLoss', tap='decode_head.conv_seg')
    if task == 'Detection':
        term = dict(type='mmsokd.KDLoss', tap='bbox_head.retina_cls', activation='sigmoid')
    model = built(student, teacher, terms=dict(loss_both=term), mutual=['loss_both'])
    losses = losses_of(model, make())
    losses['mutual.loss_both'].backward()
    assert losses['mutual.loss_both'] > 0
    assert any(p.grad is not None and p.grad.any() for p in model.online_teacher.parameters())
    assert all(p.grad is None for p in model.student.parameters())


def test_it_learns_while_all_terms_rest():
    rest = [(0.0, 0.0), (0.5, 1.0)]
    model = built(terms={name: dict(term, loss_weight=rest) for name, term in TERMS.items()})
    losses = losses_of(model, batch())
    summed(losses).backward()
    assert losses['distill.loss_kd'] == 0
    assert model.online_teacher.head.fc.weight.grad.any()
    assert all(p.grad is not None for p in model.parameters())


def test_modes():
    model = built()
    assert all(module.training for module in model.online_teacher.modules())
    model.eval()
    before = copy.deepcopy(model.online_teacher.state_dict())
    losses = losses_of(model, batch())
    assert not any(name.startswith('online_teacher') for name in losses)
    assert all(torch.equal(value, model.online_teacher.state_dict()[name]) for name, value in before.items())
    assert not any(module.training for module in model.modules())


# ---- what is saved, and who trains with it --------------------------------------------------------------------------


def test_the_exported_student_has_none_of_it():
    model = built()
    state = model.state_dict()
    assert {name.split('.')[0] for name in state} == {'student', 'online_teacher', 'terms'}
    checkpoint = dict(state_dict=state, meta={})
    MODELS.build(network(8)).load_state_dict(export_student(checkpoint)['state_dict'], strict=True)
    MODELS.build(network(16)).load_state_dict(export_part(checkpoint, 'online_teacher')['state_dict'], strict=True)


def test_a_copy_has_a_teacher_of_its_own():
    model = built()
    losses_of(model, batch())
    assert not model._own  # no graph is left behind
    other = copy.deepcopy(model)
    assert other.teacher is other.online_teacher is not model.online_teacher
    wrapper = OptimWrapper(torch.optim.SGD(other.parameters(), lr=0.1))
    before = model.online_teacher.head.fc.weight.clone()
    step(other, wrapper, batch())
    assert torch.equal(model.online_teacher.head.fc.weight, before)
    assert not torch.equal(other.online_teacher.head.fc.weight, before)


def test_a_checkpoint_of_the_teacher_is_where_it_begins(tmp_path):
    begun = MODELS.build(network(16))
    torch.save(dict(state_dict=begun.state_dict()), tmp_path / 'begun.pth')
    model = built(online=lambda: dict(cfg=network(16), checkpoint=str(tmp_path / 'begun.pth')))
    model.init_weights()  # as MMEngine's Runner does
    assert all(torch.equal(p, begun.get_parameter(name)) for name, p in model.online_teacher.named_parameters())


@pytest.mark.parametrize('kwargs', [{}, dict(terms=DPD, mutual=['loss_dpd'])], ids=['one way', 'mutual'])
def test_resume_continues_exactly(kwargs):
    assert_resumes(lambda: built(**kwargs))


def test_a_cut_run_is_the_whole_one(tmp_path, monkeypatch):
    """With SoKD's search and an EMA copy."""
    model = dict(
        type='mmsokd.OnlineDistiller',
        student=network(8),
        online_teacher=network(16),
        terms=TERMS,
        refine=dict(type='mmsokd.FeatureAugmentationNeck'),
        probe_size=32,
    )
    hooks = [dict(type='EMAHook', momentum=0.1, begin_iter=2)]
    whole, cut = straight_and_cut(tmp_path, monkeypatch, model=model, search=4, hooks=hooks)
    assert not differences(whole, cut)
    own, _ = whole['log']['train/online_teacher.loss']
    assert len(set(own)) == 12


def worker(rank, folder):
    model = built(terms=dict(TERMS, **DPD), mutual=['loss_kd', 'loss_dpd'])
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
    before = model.online_teacher.head.fc.weight.detach().clone()
    for i in range(3):
        wrapped.train_step(batch(seed=10 * rank + i), wrapper)
    assert_same(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(before, model.online_teacher.head.fc.weight)


@pytest.mark.slow
def test_ranks_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


def test_sokd_acts_beside_it():
    areas = dict(type='mmsokd.DistinctiveAreaDetector', num_areas=2)
    model = built(refine=dict(type='mmsokd.FeatureAugmentationNeck'), areas=areas)
    model.refine.necks['shared'].searching = True
    losses = losses_of(model, batch())
    summed(losses).backward()
    assert losses['sokd.aug'] > 0
    assert model.refine.necks['shared'].pop_gradient() is not None
    assert all(p.grad is not None for p in model.parameters())
    data = model.data_preprocessor(batch(), True)
    assert model.detect_areas(**data).keys() == {'loss_guide'}
    assert model.online_teacher.training


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(online_teacher=None), 'online_teacher: expected a model dict, a Config, a path'),
        (dict(teacher=3), "teacher: expected none beside 'online_teacher', which takes its place, found 3"),
        (dict(teachers=dict(a=3)), "teachers: expected none beside 'online_teacher', which takes its place"),
        (
            dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer2')),
            "refine.at: expected None beside 'online_teacher', whose own losses",
        ),
        (dict(terms=None), 'terms: expected a dict of at least one term, found None'),
        (dict(mutual='loss_kd'), "mutual: expected a list of names of terms, found 'loss_kd'"),
        (dict(mutual=['loss_dk']), "mutual: expected one of ['loss_guide', 'loss_kd'], found 'loss_dk'; did you mean"),
        (dict(mutual=['loss_guide']), "mutual: expected terms that compare the online_teacher's predictions and have"),
        (dict(online_techer=3), "model.online_techer: expected one of ['areas', "),
        (dict(online_teacher=dict(cfg='x.py', autocast='bfloat16')), 'online_teacher.autocast: expected none, which'),
        (
            dict(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', teacher='teacher'))),
            "terms.loss_kd.teacher: expected one of ['online_teacher', 'student'], found 'teacher'",
        ),
        (
            dict(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', student_tap='head.fc', teacher_tap='head.fx'))),
            "terms.loss_kd.teacher_tap in 'online_teacher': expected the path of a submodule of ImageClassifier",
        ),
    ],
)
def test_it_is_refused(kwargs, message):
    with pytest.raises((ValueError, TypeError), match='^' + re.escape(message)):
        built(**kwargs)
