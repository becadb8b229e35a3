"""The teacher's ways to be faster: what they change is the time, and rounding at most."""

import copy

import pytest
import torch
from torch import nn

from mmsokd.distillers.trimming import Gone, let_go
from tests.builders import classifier, distiller, losses_of, make_it_speak, raw_cls_batch, retinanet, segmentor

TERMS = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap=['backbone.layer2', 'backbone.layer4']))


def built(**pace):
    """With the same weights whatever the pace."""
    torch.manual_seed(0)
    teacher = dict(cfg=classifier(16), **pace)
    return distiller('Distiller', student=classifier(), teacher=teacher, terms=TERMS, probe_size=64)


def features(model, speaking=True):
    if speaking:
        make_it_speak(model.teacher, raw_cls_batch(4))
    data = model.data_preprocessor(raw_cls_batch(4), True)
    found = model._teachers['teacher'].features(data['inputs'], data['data_samples'])
    return next(iter(found.values()))


@pytest.mark.parametrize('pace', [dict(stream=True), dict(compile=dict(backend='eager'))])
def test_nothing_changes(pace):
    for plain, ours in zip(features(built()), features(built(**pace)), strict=True):
        assert torch.equal(plain, ours)


def test_channels_last_gives_the_usual_layout_back():
    model = built(channels_last=True)
    weight = model.teacher.backbone.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert model.student.backbone.layer2[0].conv1.weight.is_contiguous()
    for plain, ours in zip(features(built()), features(model), strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_autocast_is_the_teachers_alone():
    model = built(autocast='bfloat16')
    for plain, ours in zip(features(built()), features(model), strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, plain)
        assert (ours - plain).norm() < 0.05 * plain.norm()
    seen = []
    model.student.backbone.layer1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    losses_of(model, raw_cls_batch(4))
    assert seen == [torch.float32]


def test_a_whole_step_at_every_pace_at_once():
    plain, fast = built(), built(channels_last=True, autocast='bfloat16', stream=True)
    fast.student.load_state_dict(plain.student.state_dict())
    fast.terms.load_state_dict(plain.terms.state_dict())
    ours, theirs = (losses_of(model, raw_cls_batch(4)) for model in (fast, plain))
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours['distill.loss_hint'], theirs['distill.loss_hint'], rtol=0.05, atol=0)
    sum(value for name, value in ours.items() if 'loss' in name).backward()
    assert all(p.grad is not None for p in fast.student.parameters())


def test_a_copy_shares_the_teacher():
    model = built(stream=True, compile=dict(backend='eager'))
    assert copy.deepcopy(model).teacher is model.teacher


@pytest.mark.parametrize(
    ('pace', 'message'),
    [
        (dict(autocast='bf16'), r"^teacher\.autocast: expected one of .* found 'bf16'; did you mean 'bfloat16'"),
        (dict(channels_last=1), r'^teacher\.channels_last: expected'),
        (dict(compile='yes'), r'^teacher\.compile: expected'),
        (dict(compile=dict(mod='x')), r"^teacher\.compile\.mod: .*nearest: \['mode'\]"),
        (
            dict(compile=dict(backend='nonsense')),
            r"^teacher\.compile: expected arguments .* found \{'backend': 'non",
        ),
        (dict(compile=dict(backend=0.5)), r'^teacher\.compile\.backend: expected the name .* found 0\.5'),
        (dict(compile=dict(backend='eager', mode='x')), r"^teacher\.compile\.mode: expected none beside .* found 'x'"),
        (dict(compile=dict(dynamic='x')), r"^teacher\.compile\.dynamic: expected one of .* found 'x'"),
        (dict(compile=dict(fullgraph=True)), r'^teacher\.compile\.fullgraph: expected one of'),
        (dict(stream='own'), r'^teacher\.stream: expected'),
        (dict(trim='head'), r'^teacher\.trim: expected'),
        (dict(streams=True), r"^teacher\.streams: expected one of .*nearest: \['stream'\]"),
    ],
)
def test_a_wrong_pace_is_told(pace, message):
    with pytest.raises((ValueError, TypeError), match=message):
        built(**pace)


def test_a_stream_of_its_own_is_refused_beside_refine_at():
    teacher = dict(cfg=segmentor(16), stream=True)
    terms = dict(loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg'))
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    with pytest.raises(ValueError, match=r'^teacher\.stream: expected False beside refine\.at'):
        distiller('SoKDDistiller', student=segmentor(), teacher=teacher, terms=terms, refine=refine)


def gone(model):
    return [name for name, module in model.teacher.named_modules() if isinstance(module, Gone)]


def test_a_trimmed_teacher_says_the_same():
    plain, trimmed = built(), built(trim=True)
    assert gone(plain) == []
    assert gone(trimmed) == ['head']
    assert trimmed.teacher.state_dict().keys() == {k for k in plain.teacher.state_dict() if not k.startswith('head.')}
    for ours, theirs in zip(features(trimmed, speaking=False), features(plain, speaking=False), strict=True):
        assert ours.std() > 0
        assert torch.equal(ours, theirs)
    losses_of(trimmed, raw_cls_batch(4))
    assert not any(module.training for module in trimmed.train().teacher.modules())
    with pytest.raises(AttributeError, match=r"^teacher\.trim: expected False where 'head' is needed"):
        trimmed.teacher(torch.zeros(1, 3, 32, 32), mode='predict')


def test_later_stages_go_too():
    teacher = dict(cfg=retinanet(16), trim=True)
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2'))
    model = distiller('Distiller', student=retinanet(), teacher=teacher, terms=terms)
    assert gone(model) == ['backbone.layer3', 'backbone.layer4', 'neck', 'bbox_head']


def test_what_refine_at_needs_stays():
    teacher = dict(cfg=segmentor(16), trim=True)
    terms = dict(loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg'))
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    model = distiller('SoKDDistiller', student=segmentor(), teacher=teacher, terms=terms, refine=refine)
    assert gone(model) == []


def test_weights_that_are_read_without_a_call_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)  # its last projection is never called
            self.table, self.unread = nn.Embedding(3, 8), nn.Embedding(3, 8)

        def forward(self, x):
            return self.attention(x, x, self.table.weight[None].expand_as(x))[0]

    net = Net().train()
    x = torch.randn(1, 3, 8)
    before = net(x)
    assert let_go(net, lambda: net(x), 'teacher') == ['unread']
    assert torch.equal(net(x), before)


def test_what_is_needed_unseen_is_told():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with pytest.raises(AttributeError, match=r"^teacher\.trim: .*'1'"):
        let_go(net, lambda: net[1].out_features, 'teacher')


@pytest.mark.parametrize('kind', ['TSTDistiller', 'IAKDDistiller'])
def test_some_need_the_whole_teacher(kind):
    with pytest.raises(ValueError, match=rf'^teacher\.trim: expected False for a {kind}'):
        distiller(kind, student=classifier(), teacher=dict(cfg=classifier(16), trim=True), terms=TERMS, probe_size=64)


@pytest.mark.cuda
def test_a_stream_of_its_own_on_a_gpu():
    plain, aside = built().cuda(), built(stream=True).cuda()
    aside.student.load_state_dict(plain.student.state_dict())
    aside.terms.load_state_dict(plain.terms.state_dict())
    for seed in range(5):
        ours, theirs = (losses_of(model, raw_cls_batch(8, seed=seed)) for model in (aside, plain))
        torch.testing.assert_close(ours['distill.loss_hint'], theirs['distill.loss_hint'])
