"""Losses that take a whole pyramid, and losses that tell of themselves: SKD and MTKD-SSR in a distiller."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmsokd.losses import LossResult, TermLoss
from tests.builders import (
    assert_exports,
    assert_resumes,
    classifier,
    distiller,
    losses_of,
    raw_batch,
    raw_cls_batch,
    retinanet,
    step,
)
from tests.two_ranks import assert_same, on_two_ranks

STAGES = [f'backbone.layer{i}' for i in (1, 2, 3, 4)]
SKD = dict(type='mmsokd.StudentFriendlyKDLoss', tap='head.fc', embed_dims=8)
SSR = dict(type='mmsokd.MTKDSSRLoss', tap=[*STAGES, 'head.fc'], head_channels=8)
HINT = dict(type='mmsokd.FitNetLoss', tap='backbone.layer3')
BOTH = dict(loss_skd=SKD, loss_ssr=SSR)
AT = dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3'))
TOLD = {'skd.kl_soft_target', 'skd.kl_target_student', 'ssr.channel', 'ssr.response', 'ssr.review', 'ssr.auxiliary'}
COMBINED = [
    dict(kind='Distiller', terms=BOTH),
    dict(kind='SoKDDistiller', terms=dict(BOTH, loss_hint=HINT)),  # refined beside the teacher, with areas
    dict(kind='SoKDDistiller', terms=BOTH, areas=None, **AT),  # in the middle of the stages
    dict(kind='SoKDDistiller', terms=dict(BOTH, loss_hint=dict(HINT, tap='backbone.layer2')), **AT),
]


def classifiers(kind='Distiller', **kwargs):
    torch.manual_seed(0)
    models = dict(student=classifier(8), teacher=classifier(12))
    return distiller(kind, **models, probe_size=64, **kwargs).train()


def at_iteration(iteration, of=20):
    MessageHub.get_current_instance().update_info('max_iters', of)
    MessageHub.get_current_instance().update_info('iter', iteration)


def silent(model):
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


# ---- SKD and MTKD-SSR beside each other and below SoKD --------------------------------------------------------------


@pytest.mark.parametrize('kwargs', COMBINED)
def test_combinations_train(kwargs):
    model = classifiers(**kwargs)
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.003))
    batch = raw_cls_batch(4)
    before = {name: p.detach().clone() for name, p in model.terms.named_parameters()}
    logs = [step(model, wrapper, batch) for _ in range(6)]
    for name in ('distill.loss_skd', 'distill.loss_ssr'):
        assert sum(log[name] for log in logs[-2:]) < sum(log[name] for log in logs[:2]), name
    for name in ('simplifier', 'student_heads', 'teacher_heads', 'fits'):
        own = [key for key in before if name in key]
        moved = [key for key in own if not torch.equal(before[key], model.terms.get_parameter(key))]
        assert own, name
        assert moved == own, name
    assert all(set(log) >= TOLD for log in logs)


def test_a_term_on_responses_follows_as_soon_as_one_of_its_levels_does():
    model = classifiers('SoKDDistiller', terms=dict(loss_ssr=SSR), areas=None, **AT)
    assert model.refine.followers == {'loss_ssr'}
    hint = dict(loss_hint=dict(HINT, tap=STAGES))
    with pytest.raises(ValueError, match=r'expected levels that all follow'):
        classifiers('SoKDDistiller', terms=hint, areas=None, **AT)


def test_parts_of_a_detectors_levels():
    term = dict(type='mmsokd.MTKDSSRLoss', tap='bbox_head.retina_cls', num_responses=3, activation='sigmoid')
    model = distiller('Distiller', terms=dict(loss_ssr=term)).train()
    (loss,) = model.terms['loss_ssr'].losses
    assert list(loss.parameters()) == []
    losses = losses_of(model)
    assert losses['ssr.channel'] == losses['ssr.auxiliary'] == 0
    assert min(losses['ssr.response'], losses['ssr.review']) > 0


def test_levels_whose_sizes_differ_pair_by_order():
    student = classifier(8)
    student['backbone'] = dict(student['backbone'], strides=(1, 2, 2, 1))
    model = distiller('Distiller', student=student, teacher=classifier(12), terms=dict(loss_ssr=SSR), probe_size=64)
    strides = [(s.stride, t.stride) for s, t in model.terms['loss_ssr'].specs]
    assert strides == [(4, 4), (8, 8), (16, 16), (16, 32), (0, 0)]
    assert losses_of(model.train(), raw_cls_batch(4))['distill.loss_ssr'] > 0


def test_what_goes_below_zero_is_reached():
    """Stages end with a ReLU, the levels of a feature pyramid do not."""
    stages = classifiers(terms=dict(loss_ssr=SSR)).terms['loss_ssr'].losses[0]
    assert [fit.with_activation for fit in stages.fits] == [True] * 4
    term = dict(type='mmsokd.MTKDSSRLoss', tap=['neck', 'bbox_head.retina_cls'], num_responses=3, activation='sigmoid')
    levels = distiller('Distiller', terms=dict(loss_ssr=term)).terms['loss_ssr'].losses[0]
    assert [fit.with_activation for fit in levels.fits] == [False] * 3


def test_heads_vanish_from_the_exported_student():
    model = classifiers(terms=BOTH)
    assert any('student_heads' in name for name in model.state_dict())
    assert_exports(model, classifier(8))


def test_the_simplifier_learns_at_its_own_rate():
    """As the configs say it; without a decoupled key every other parameter keeps its rate."""
    model = classifiers(terms=BOTH)
    cfg = dict(optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    rates = {p: group['lr'] for group in groups for p in group['params']}
    slow = {name for name, p in model.named_parameters() if rates[p] == pytest.approx(1e-4)}
    assert slow == {name for name, _ in model.named_parameters() if 'loss_skd' in name}
    assert len(slow) == 7
    assert {rates[p] for name, p in model.named_parameters() if name not in slow} == {0.1}


def test_resume_continues_exactly():
    assert_resumes(lambda: classifiers(terms=BOTH))


def worker(rank, folder):
    rests = dict(loss_skd=dict(SKD, loss_weight=[(0.0, 0.0), (0.5, 1.0)]), loss_ssr=SSR)
    detector = dict(type='mmsokd.StudentFriendlyKDLoss', tap='bbox_head.retina_cls', num_classes=3, embed_dims=8)
    for kwargs in (dict(terms=BOTH), dict(terms=rests), None):
        if kwargs is None:  # whose last level has fewer than four tokens
            torch.manual_seed(0)
            model = distiller('Distiller', terms=dict(loss_skd=detector), student=retinanet(16), probe_size=64).train()
            batches = [raw_batch(seed=10 * rank + i) for i in range(2)]
        else:
            model = classifiers(**kwargs)
            batches = [raw_cls_batch(4, seed=10 * rank + i) for i in range(2)]
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
        for batch in batches:
            wrapped.train_step(batch, wrapper)
        assert_same(torch.cat([p.detach().flatten() for p in model.parameters()]), kwargs)


@pytest.mark.slow
def test_ranks_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


# ---- what the log shows ---------------------------------------------------------------------------------------------


class TellingLoss(TermLoss):
    """Tells its level's number of cells, and NaN where that is 4."""

    stats = ('cells.count', 'cells.twice')

    def forward(self, student, teacher):
        count = student.new_tensor(student[0, 0].numel())
        count = torch.where(count == 4, torch.nan, count)
        return LossResult((student - student).sum(), {'cells.count': count, 'cells.twice': 2 * count})


class SummedLoss(TellingLoss):
    """MMEngine sums every key that contains the word."""

    stats = ('cells.count', 'cells.loss_part')


def test_a_stat_that_would_be_summed_is_refused():
    with pytest.raises(ValueError, match=r"^terms\.loss_a\.type: .*without 'loss'.*\['cells\.loss_part'\] of Summed"):
        distiller('Distiller', terms=dict(loss_a=dict(type=SummedLoss, tap='neck')))


class WholeLoss(TermLoss):
    """Wants all levels at once."""

    pyramid = True
    per_position = True
    same_size = False

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.widths = student_channels, teacher_channels
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, weight=None):
        assert len(student) == len(teacher) == len(self.widths[0])
        assert weight is None or [w.shape[-2:] for w in weight] == [s.shape[-2:] for s in student]
        return self.scale * sum((s.mean() - t.mean()) ** 2 for s, t in zip(student, teacher, strict=True))


def test_what_is_told_is_averaged_over_levels_and_terms():
    tap = dict(type=TellingLoss, tap='neck')  # 8 x 8, 4 x 4 and 2 x 2 cells
    model = distiller('Distiller', terms=dict(loss_a=tap, loss_b=dict(tap, tap='neck[1]'))).train()
    losses = losses_of(model)
    assert losses['cells.count'] == ((64 + 16) / 2 + 16) / 2
    assert losses['cells.twice'] == 2 * losses['cells.count']
    total, log = model.parse_losses(losses)
    assert total == sum(value for name, value in log.items() if 'loss' in name and name != 'loss')


def test_the_log_names_the_same_when_a_term_rests():
    """MMEngine prints the last window of a key that is no longer there."""
    rests = dict(loss_weight=dict(stop=10, by_epoch=False))
    model = classifiers(terms={name: dict(term, **rests) for name, term in BOTH.items()})
    logs = []
    for iteration in (9, 10):
        at_iteration(iteration)
        losses = losses_of(model, raw_cls_batch(4))
        logs.append(losses)
        model.zero_grad()
        model.parse_losses(losses)[0].backward()
        assert not silent(model)
    assert logs[0].keys() == logs[1].keys()
    assert all(logs[0][name].isfinite() for name in TOLD)
    assert all(logs[1][name].isnan() for name in TOLD)
    assert not [name for name in TOLD if 'loss' in name]


@pytest.mark.parametrize('kind', ['Distiller', 'SoKDDistiller'])
def test_a_pyramid_is_given_whole(kind):
    model = distiller(kind, terms=dict(loss_all=dict(type=WholeLoss, tap='neck'))).train()
    (loss,) = model.terms['loss_all'].losses
    sokd = kind == 'SoKDDistiller'  # whose adapter brings each level to the teacher's width
    assert loss.widths == ([24 if sokd else 16] * 3, [24] * 3)
    losses = losses_of(model)
    assert losses['distill.loss_all'].requires_grad
    model.parse_losses(losses)[0].backward()
    assert not silent(model)
