"""KCD: a student learns from the matching channels of its teacher, by any loss of features."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from tests.builders import (
    assert_exports,
    classifier,
    distiller,
    losses_of,
    make_it_speak,
    raw_batch,
    raw_cls_batch,
    retinanet,
    step,
)
from tests.builders_training import differences, network, sokd
from tests.distillers import test_host_table
from tests.hooks.test_resume import straight_and_cut
from tests.two_ranks import assert_same, on_two_ranks

MATCHING = dict(type='mmsokd.ChannelMatching')
HINTS = dict(Classification='backbone.layer3', Segmentation='backbone.layer4', Detection='neck')


@pytest.fixture(autouse=True)
def at():
    """Sets the training's clock, which is put right afterwards."""
    hub = MessageHub.get_current_instance()
    before = hub.runtime_info.get('iter', 0)
    hub.update_info('iter', 0)
    yield lambda iteration: hub.update_info('iter', iteration)
    hub.update_info('iter', before)


def hint(tap='neck', **kwargs):
    return dict(type='mmsokd.FitNetLoss', tap=tap, adapter=dict(MATCHING), **kwargs)


def train(task, kind, adapter, at, steps=20):
    """The losses of a student that learns beside its teacher's 1.5 times as many channels."""
    torch.manual_seed(0)
    row = test_host_table.TASKS[task]
    model = distiller(
        kind,
        student=row.student(),
        teacher=row.teacher(),
        terms=dict(loss_hint=dict(hint(HINTS[task]), adapter=adapter)),
        probe_size=64,
    )
    make_it_speak(model.teacher, row.batch())
    wrapper = OptimWrapper(torch.optim.Adam(model.train().student.parameters(), lr=0.005))
    values = []
    for i in range(steps):
        at(i)
        values.append(step(model, wrapper, row.batch())['distill.loss_hint'].item())
    return model, values


@pytest.mark.parametrize('kind', ['Distiller', 'SoKDDistiller'])
@pytest.mark.parametrize('task', list(HINTS))
def test_loss_falls(task, kind, at):
    """The match is made in the first step: else what falls could be what matching takes off."""
    model, values = train(task, kind, dict(MATCHING, batches=1), at)
    assert sum(values[-5:]) / 5 < 0.9 * sum(values[:3]) / 3, values
    for adapter, (s, t) in zip(model.terms['loss_hint'].adapter, model.terms['loss_hint'].specs, strict=True):
        assert s.channels < t.channels
        assert adapter.order.tolist() != list(range(s.channels))


def twins():
    """A detector, and the same with the channels of its neck in another order; BatchNorm is the same in training."""
    torch.manual_seed(0)
    net = retinanet(16)
    net['backbone']['norm_eval'] = True
    model = distiller('Distiller', student=net, teacher=copy.deepcopy(net), terms=dict(loss_hint=hint()))
    model.teacher.load_state_dict(model.student.state_dict())
    orders = [torch.randperm(16) for _ in model.teacher.neck.fpn_convs]
    with torch.no_grad():
        for conv, order in zip(model.teacher.neck.fpn_convs, orders, strict=True):
            for parameter in conv.parameters():
                parameter.copy_(parameter[order])
    return model.train(), orders


def test_a_teacher_in_another_order_is_understood():
    model, orders = twins()
    term = model.terms['loss_hint']
    assert losses_of(model)['distill.loss_hint'] < 1e-10
    assert len(orders) == len(term.adapter) == 3
    for adapter, order in zip(term.adapter, orders, strict=True):
        assert torch.equal(order[adapter.order], torch.arange(16))
    term.adapter_cfg = None
    term.adapter = term._fit.build(None)
    assert losses_of(model)['distill.loss_hint'] > 1e-3  # what it is without


@pytest.mark.parametrize('kind', ['PKD', 'CWD', 'MGD', 'AT'])
def test_other_losses_take_it(kind):
    model = distiller('Distiller', terms=dict(loss_host=dict(hint(), type=f'mmsokd.{kind}Loss'))).train()
    assert losses_of(model)['distill.loss_host'] > 0
    assert model.terms['loss_host'].channels == [16, 16, 16]


def test_each_term_has_a_refined_feature_of_its_own():
    """SoKD shares it among the terms of one tap; what is matched is another one."""

    def loss(**more):
        torch.manual_seed(0)
        model = distiller(terms=dict(loss_a=hint(), **more), areas=None).train()
        torch.manual_seed(0)
        return losses_of(model)

    alone = loss()
    beside = loss(loss_b=dict(type='mmsokd.FitNetLoss', tap='neck'), loss_c=dict(hint(), type='mmsokd.PKDLoss'))
    assert torch.equal(alone['distill.loss_a'], beside['distill.loss_a'])


def test_areas_are_found_in_the_matched_channels(monkeypatch):
    model = distiller(terms=dict(loss_hint=hint())).eval()
    data = model.data_preprocessor(raw_batch(), True)
    seen = []
    monkeypatch.setattr(model.areas.detectors['loss_hint'], 'detect', lambda student, teacher: seen.append(teacher))
    model.detect_areas(**data)
    for adapter in model.terms['loss_hint'].adapter:
        adapter.order.copy_(adapter.order.flip(0))
    model.detect_areas(**data)
    assert len(seen[0]) == 3
    for before, after in zip(*seen, strict=True):
        assert torch.equal(before.flip(1), after)
        assert not torch.equal(before, after)


def test_the_student_that_is_exported_is_the_plain_one():
    model, _ = twins()
    orders = [name for name in model.state_dict() if name.endswith('order')]
    assert orders == [f'terms.loss_hint.adapter.{i}.order' for i in range(3)]
    assert_exports(model, retinanet(16))


@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook', momentum=0.1, begin_iter=2)]], ids=['alone', 'ema'])
def test_a_cut_run_is_the_whole_one(tmp_path, monkeypatch, hooks):
    """It is cut after six iterations, amid the second look."""
    adapter = dict(MATCHING, interval=5, batches=3)
    model = sokd(terms=dict(loss_hint=dict(hint('backbone.layer3'), adapter=adapter)), areas=None)
    whole, cut = straight_and_cut(tmp_path, monkeypatch, model=model, search=4, hooks=hooks)
    assert not differences(whole, cut)
    order = whole['state_dict']['terms.loss_hint.adapter.0.order']
    assert len(order) == 8
    assert order.tolist() != list(range(8))


def worker(rank, folder):
    torch.manual_seed(0)
    adapter = dict(MATCHING, interval=3, batches=2)
    model = distiller('Distiller', terms=dict(loss_hint=dict(hint(), adapter=adapter))).train()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optim_wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
    for i in range(5):
        MessageHub.get_current_instance().update_info('iter', i)
        wrapped.train_step(raw_batch(seed=10 * rank + i), optim_wrapper)
        for name, tensor in [*model.named_parameters(), *model.terms.named_buffers()]:
            assert_same(tensor.detach(), i, name)


@pytest.mark.slow
def test_ranks_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('term', 'networks', 'message'),
    [
        (
            hint('backbone.layer2'),
            dict(student=lambda: classifier(12), teacher=lambda: classifier(8)),
            r'terms\.loss_hint\.adapter: expected a teacher of at least the 24 channels of its student, found 16; give '
            r"dict\(type='mmsokd\.ConvAdapter'\)",
        ),
        (
            dict(hint('head.fc'), type='mmsokd.KDLoss'),
            {},
            r'terms\.loss_hint\.adapter: .* for logits, whose channels have a meaning, found ChannelMatching',
        ),
        (hint('neck'), {}, r"terms\.loss_hint\.adapter: .*'mmsokd\.LinearAdapter'\), for vectors .*ChannelMatching"),
        (
            dict(hint(), student_tap='backbone.layer2', teacher_tap='backbone.layer3') | dict(tap=None),
            {},
            r"terms\.loss_hint: expected equal sizes, .*resize='bilinear'",
        ),
    ],
    ids=['narrower', 'logits', 'vectors', 'sizes'],
)
def test_it_is_refused(term, networks, message):
    term = {key: value for key, value in term.items() if value is not None}
    nets = {'student': lambda: classifier(8), 'teacher': lambda: classifier(12), **networks}
    with pytest.raises(ValueError, match=message):
        distiller('Distiller', **{side: net() for side, net in nets.items()}, terms=dict(loss_hint=term), probe_size=64)


def test_sizes_are_brought_together():
    term = dict(
        hint(), student_tap='backbone.layer2', teacher_tap='backbone.layer3', adapter=dict(MATCHING, resize='area')
    )
    del term['tap']
    model = distiller('Distiller', student=network(8), teacher=network(16), terms=dict(loss_hint=term), probe_size=32)
    assert losses_of(model.train(), raw_cls_batch(4, 32))['distill.loss_hint'] > 0
    assert model.terms['loss_hint'].channels == [4]
