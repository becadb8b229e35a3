"""SFTN's teacher: its loss, whom its gradients reach, what is cut, and what a wrong config says."""

import copy

import pytest
import torch
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import load_checkpoint as fill
from mmengine.runner.checkpoint import get_state_dict

from mmsokd.distillers.cutting import Cutter, Given, handing
from mmsokd.export import export_part
from mmsokd.registry import MODELS
from tests import builders
from tests.builders import (
    classifier,
    gfl,
    losses_of,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
    use_scope,
)
from tests.distillers.test_families import override, rtmdet, two_stage
from tests.reference.logits import kd
from tests.reference.sftn import sftn

STAGES = ['backbone.layer1', 'backbone.layer2', 'backbone.layer3']
FC = dict(tap='head.fc')
SEG = dict(tap='decode_head.conv_seg')
DET = dict(tap='bbox_head.retina_cls', activation='sigmoid')


def cifar(backbone, channels, **kwargs):
    """A classifier with a backbone of the zoo."""
    use_scope('mmpretrain')
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        backbone=dict(type=f'mmsokd.CIFAR{backbone}', **kwargs),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=channels, loss=dict(type='CrossEntropyLoss')),
    )


def narrow():
    return cifar('ResNet', 8, depth=8, widths=(4, 4, 6, 8))


def wide():
    return cifar('ResNet', 12, depth=8, widths=(8, 8, 10, 12))


def trainer(teacher, student, kl=FC, stages=STAGES, size=32, **kwargs):
    torch.manual_seed(0)
    cfg = dict(type='mmsokd.SFTNTeacherTrainer', teacher=teacher, student=student, kl=kl, stages=stages)
    return MODELS.build(copy.deepcopy(dict(cfg, probe_size=size, **kwargs))).train()


def small(**kwargs):
    """ResNet-8 and a narrower one for 32 x 32 pictures, two branches."""
    return trainer(**{'teacher': wide(), 'student': narrow(), 'stages': STAGES[:2], **kwargs})


def batch(n=4):
    return raw_cls_batch(n, 32)


# ---- the loss -------------------------------------------------------------------------------------------------------


def by_hand(model, inputs):
    """Logits of the teacher and of the branches, layer after layer."""
    feats, feat = [], inputs
    for i in range(4):
        feat = getattr(model.teacher.backbone, f'layer{i}')(feat)
        feats.append(feat)
    teacher = feats[-1].mean((2, 3)) @ model.teacher.head.fc.weight.T + model.teacher.head.fc.bias
    branches = []
    for i, (branch, transform) in enumerate(zip(model.branches, model.transforms, strict=True), 1):
        conv, norm = transform.conv.conv, transform.conv.bn
        feat = torch.einsum('oc,nchw->nohw', conv.weight[:, :, 0, 0], feats[i])
        mean, var = feat.mean((0, 2, 3), keepdim=True), feat.var((0, 2, 3), keepdim=True, unbiased=False)
        feat = (feat - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        feat = feat.clamp(min=0)
        for j in range(i + 1, 4):
            feat = getattr(branch.backbone, f'layer{j}')(feat)
        branches.append(feat.mean((2, 3)) @ branch.head.fc.weight.T + branch.head.fc.bias)
    return teacher, branches


@pytest.mark.parametrize(
    ('kwargs', 'reference'),
    [
        (dict(), dict()),
        (
            dict(teacher_weight=0.5, branch_weight=2.0, kl=dict(FC, tau=4.0, loss_weight=0.7)),
            dict(teacher_weight=0.5, branch_weight=2.0, kl_weight=0.7, tau=4.0),
        ),
    ],
    ids=['default', 'weighted'],
)
def test_loss_equals_the_reference(kwargs, reference):
    model = small(**kwargs).double()
    with torch.no_grad():  # so that the predictions differ
        for net in (model.teacher, *model.branches):
            net.head.fc.weight.mul_(5)
    data = model.data_preprocessor(batch(), True)
    data['inputs'] = data['inputs'].double()
    losses = {name: float(value) for name, value in model(**data, mode='loss').items()}
    with torch.no_grad():
        teacher, branches = by_hand(model, data['inputs'])
    labels = [int(sample.gt_label) for sample in data['data_samples']]
    own, divergence, task = sftn(teacher.numpy(), [q.numpy() for q in branches], labels, **reference)
    assert divergence > 0.01
    assert losses['teacher.loss'] == pytest.approx(own, rel=1e-10)
    assert losses['sftn.loss_kl1'] + losses['sftn.loss_kl2'] == pytest.approx(divergence, rel=1e-9)
    assert losses['sftn.loss_branch1'] + losses['sftn.loss_branch2'] == pytest.approx(task, rel=1e-10)
    assert set(losses) == {'teacher.loss', *(f'sftn.loss_{kind}{i}' for kind in ('kl', 'branch') for i in (1, 2))}


def test_gradient_equals_finite_differences():
    """Of the sum, along a random direction of all parameters: both sides of the KL take part."""
    model = small(kl=dict(FC, tau=2.0)).double()
    data = model.data_preprocessor(batch(), True)
    data['inputs'] = data['inputs'].double()

    def total():
        return model.parse_losses(model(**copy.deepcopy(data), mode='loss'))[0]

    total().backward()
    generator = torch.Generator().manual_seed(1)
    parameters = list(model.parameters())
    along = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std(correction=0) for p in parameters
    ]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, along, strict=True))

    @torch.no_grad()
    def shifted(step):
        for p, d in zip(parameters, along, strict=True):
            p.add_(step * d)
        value = total()
        for p, d in zip(parameters, along, strict=True):
            p.sub_(step * d)
        return value

    eps = 1e-6
    assert float((shifted(eps) - shifted(-eps)) / (2 * eps)) == pytest.approx(float(slope), rel=1e-5)


def test_levels_of_a_detector_are_summed_with_the_branch_in_the_teachers_place():
    model = trainer(retinanet(24), retinanet(16), DET, size=128)
    logits = []
    hooks = [
        net.bbox_head.retina_cls.register_forward_hook(lambda _m, _x, out: logits.append(out.detach().numpy()))
        for net in (model.teacher, *model.branches)
    ]
    losses = losses_of(model)
    for hook in hooks:
        hook.remove()
    assert len(logits) == 4 * 3
    theirs, *ours = (logits[i : i + 3] for i in range(0, 12, 3))
    for i, branch in enumerate(ours, 1):
        expected = sum(kd(t, q, 1.0, 'sigmoid') for t, q in zip(theirs, branch, strict=True))  # the branch first
        assert expected > 1e-4
        assert float(losses[f'sftn.loss_kl{i}']) == pytest.approx(3 / 3 * expected, rel=1e-4)


# ---- the gradients --------------------------------------------------------------------------------------------------


def reached(model, loss):
    """What of the teacher has a gradient of ``loss``, stage by stage."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    names = [n for n, p in model.teacher.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {'.'.join(name.split('.')[:2]) for name in names}


@pytest.mark.parametrize('detach', [False, True])
def test_gradients_of_the_branches_reach_the_teacher(detach):
    model = small(detach_teacher=detach)
    losses = losses_of(model, batch())
    every = {*(f'backbone.layer{i}' for i in range(4)), 'head.fc'}
    for i in (1, 2):
        shared = {f'backbone.layer{j}' for j in range(i + 1)}
        assert reached(model, losses[f'sftn.loss_branch{i}']) == shared
        assert reached(model, losses[f'sftn.loss_kl{i}']) == (shared if detach else every)
    assert reached(model, losses['teacher.loss']) == every


def test_a_branch_that_cannot_bend_the_teacher_is_told(monkeypatch):
    """What mmdet freezes by default; the warning names the stages that no gradient of the branches passes."""
    told = []
    monkeypatch.setattr('mmsokd.distillers.sftn.print_log', lambda text, *_, **__: told.append(text))
    teacher = retinanet(24)
    teacher['backbone']['frozen_stages'] = 2
    model = trainer(teacher, retinanet(16), DET, STAGES, 128, detach_teacher=True)
    (text,) = told
    assert 'expected parameters of the teacher that learn before' in text
    assert "before ['backbone.layer1', 'backbone.layer2'], found none" in text
    losses = losses_of(model)
    passed = [reached(model, losses[f'sftn.loss_branch{i}']) for i in (1, 2, 3)]
    assert passed == [set(), set(), {'backbone.layer3'}]
    trainer(retinanet(24), retinanet(16), DET, STAGES, 128)
    assert told == [text]


@pytest.mark.parametrize('share_head', [False, True])
def test_every_parameter_learns(share_head):
    model = small(share_head=share_head)
    model.parse_losses(losses_of(model, batch()))[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    heads = {id(branch.head.fc.weight) for branch in model.branches}
    assert len(heads) == (1 if share_head else 2)
    assert len({id(branch.backbone) for branch in model.branches}) == 2


@pytest.mark.parametrize(
    'paramwise', [dict(norm_decay_mult=0.0), dict(custom_keys={'branches': dict(lr_mult=0.1)})], ids=str
)
def test_a_shared_head_has_one_place_in_the_optimizer(paramwise):
    model = small(share_head=True)
    cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-4), paramwise_cfg=paramwise)
    groups = build_optim_wrapper(model, cfg).param_groups
    found = [id(p) for group in groups for p in group['params'] if p.requires_grad]  # MMEngine adds a constant
    assert sorted(found) == sorted(map(id, model.parameters()))
    assert len(list(model.parameters())) == len(list(small().parameters())) - 2  # a head's weight and bias


@pytest.mark.parametrize('state_of', [torch.nn.Module.state_dict, get_state_dict], ids=['torch', 'mmengine'])
def test_a_shared_head_is_whole_in_each_branch_of_a_checkpoint(state_of):
    model = small(share_head=True)
    state = state_of(model)
    assert set(state) == set(small().state_dict())
    for i in (0, 1):
        branch = export_part(dict(state_dict=state), f'branches.{i}')['state_dict']
        assert torch.equal(branch['head.fc.weight'], model.branches[0].head.fc.weight)
    other = small(share_head=True)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    twin = copy.deepcopy(model)  # as EMAHook makes it
    assert twin.branches[1].head is twin.branches[0].head
    assert twin.branches[1].head is not model.branches[0].head
    builders.step(twin, OptimWrapper(torch.optim.SGD(twin.parameters(), lr=0.1)), batch())
    assert not torch.equal(twin.state_dict()['branches.1.head.fc.weight'], state['branches.1.head.fc.weight'])


# ---- the cut --------------------------------------------------------------------------------------------------------

NETS = [
    (lambda: classifier(8), 'head.fc', STAGES, 64),
    (lambda: cifar('MobileNetV2', 1280), 'head.fc', [f'backbone.layer{i}' for i in (1, 2, 3, 4)], 32),
    (lambda: cifar('ShuffleNetV1', 960), 'head.fc', STAGES, 32),
    (lambda: cifar('VGG', 512, depth=8), 'head.fc', STAGES, 32),
    (segmentor, 'decode_head.conv_seg', STAGES, 64),
    (retinanet, 'bbox_head.retina_cls', STAGES, 128),
    (gfl, 'bbox_head.gfl_cls', ['backbone.layer2.0', 'backbone.layer2.1'], 128),
]


@pytest.mark.parametrize(('make', 'logits', 'stages', 'size'), NETS)
def test_a_cut_model_goes_on_from_the_features(make, logits, stages, size):
    """On another picture, of another size than the dry run's, in training mode: BatchNorm counts as usual."""
    torch.manual_seed(0)
    net = MODELS.build(make())
    cutter = Cutter(net, {f'stages[{i}]': path for i, path in enumerate(stages)}, logits, size)
    parts = [cutter.cut(i).train() for i in range(len(stages))]
    inputs = torch.randn(2, 3, size // 2, size)
    feats = {}
    hooks = [
        net.get_submodule(path).register_forward_hook(lambda _m, _x, out, i=i: feats.__setitem__(i, out.clone()))
        for i, path in enumerate(stages)
    ]
    whole = list(outputs(net.train()(inputs)))
    for hook in hooks:
        hook.remove()
    for part, path in zip(parts, stages, strict=True):
        with handing(part, feats):
            outs = list(outputs(part(torch.zeros_like(inputs))))
        assert len(outs) == len(whole)
        assert all(torch.equal(a, b) for a, b in zip(outs, whole, strict=True))
        parent, _, leaf = path.rpartition('.')
        children = dict(part.get_submodule(parent).named_children())
        assert isinstance(children[leaf], Given)
        before = list(children)[: list(children).index(leaf)]
        assert not [p for name in before for p in children[name].parameters()], (
            'nothing runs or learns before the stage'
        )
    assert not [m for m in net.modules() if isinstance(m, Given)]


def outputs(value):
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value:
            yield from outputs(item)


def test_what_was_handed_is_not_kept():
    model = small()
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    builders.step(model, optim_wrapper, batch())
    twin = copy.deepcopy(model)
    for net in (model, twin):
        assert all(m.feat is None for m in net.modules() if isinstance(m, Given))
    first, second = (
        builders.step(net, OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.01)), batch()) for net in (model, twin)
    )
    assert first == second
    with pytest.raises(KeyError), handing(model.branches[0], {}):
        pass
    assert all(m.feat is None for m in model.modules() if isinstance(m, Given))


# ---- tasks ----------------------------------------------------------------------------------------------------------

AUX = dict(
    type='FCNHead',
    in_channels=32,
    in_index=2,
    channels=8,
    num_convs=1,
    num_classes=4,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
)
VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48),
    img_size=64,
    patch_size=8,
)


def from_stride_4(channels):
    """A detector whose neck reads all stages."""
    model = retinanet(channels)
    model['neck'] = dict(model['neck'], start_level=0, num_outs=4)
    model['bbox_head']['anchor_generator']['strides'] = [4, 8, 16, 32]
    return model


TASKS = {
    'classifier': (lambda: classifier(12), lambda: classifier(8), FC, STAGES, 64, raw_cls_batch),
    'other strides': (
        wide,
        lambda: cifar('MobileNetV2', 1280),
        FC,
        [dict(teacher=f'backbone.layer{i}', student=f'backbone.layer{i + 1}') for i in (1, 2, 3)],
        32,
        lambda: raw_cls_batch(2, 36),
    ),
    'larger maps': (lambda: cifar('MobileNetV2', 1280), narrow, FC, STAGES, 32, batch),
    'transformer': (
        lambda: classifier(backbone=VIT, neck=None, head=dict(type='VisionTransformerClsHead', in_channels=24)),
        lambda: classifier(8),
        dict(student_tap='head.fc', teacher_tap='head.layers.head'),
        [dict(teacher='backbone.layers.1', student='backbone.layer2')],
        64,
        raw_cls_batch,
    ),
    'segmentor': (
        lambda: segmentor(12, channels=16),
        lambda: segmentor(8, auxiliary_head=AUX),
        SEG,
        STAGES,
        64,
        raw_seg_batch,
    ),
    'detector': (lambda: retinanet(24), lambda: retinanet(16), DET, STAGES, 128, raw_batch),
    'all levels': (lambda: from_stride_4(24), lambda: from_stride_4(16), DET, STAGES, 128, raw_batch),
}


@pytest.mark.parametrize('task', TASKS)
def test_trains(task):
    teacher, student, kl, stages, size, make = TASKS[task]
    model = trainer(teacher(), student(), kl, stages, size)
    model.parse_losses(losses_of(model, make()))[0].backward()
    optim_wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-3))
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    logs = [builders.step(model, optim_wrapper, make()) for _ in range(8)]
    sums = [sum(float(v) for k, v in log.items() if k.startswith('sftn.loss_branch')) for log in logs]
    assert sums[-1] < sums[0]
    assert all(log['loss'].isfinite() for log in logs)


@pytest.mark.parametrize(
    ('family', 'tap', 'stages'),
    [
        (two_stage, 'rpn_head.rpn_cls', STAGES),
        (rtmdet, [f'bbox_head.rtm_cls.{i}' for i in range(3)], [f'backbone.stage{i}' for i in (1, 2, 3)]),
    ],
    ids=['two stages', 'rtmdet'],
)
def test_steps_in_other_detectors(family, tap, stages):
    use_scope('mmdet')
    teacher, student = (
        override(get_config(f'mmdet::{path}').model, changes) for path, changes in (family(24), family(16))
    )
    model = trainer(teacher, student, dict(tap=tap, activation='sigmoid'), stages, 128)
    losses = losses_of(model, raw_batch(size=128))
    model.parse_losses(losses)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(losses[f'sftn.loss_{kind}{i}'] > 0 for kind in ('kl', 'branch') for i in (1, 2, 3))


# ---- what comes of it -----------------------------------------------------------------------------------------------


def test_the_trainer_is_the_teacher():
    model = small().eval()
    data = model.data_preprocessor(batch(), False)
    ours, plain = (net(**copy.deepcopy(data), mode='predict') for net in (model, model.teacher))
    assert [s.pred_score.tolist() for s in ours] == [s.pred_score.tolist() for s in plain]
    assert model.backbone is model.teacher.backbone
    with pytest.raises(
        AttributeError, match='neither SFTNTeacherTrainer nor its teacher, a ImageClassifier, has an at'
    ):
        model.heads  # noqa: B018


def test_exported_teacher_is_plain_and_teaches(tmp_path):
    model = small()
    builders.step(model, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)), batch())
    exported = export_part(dict(state_dict=model.state_dict()), 'teacher')
    plain = MODELS.build(wide())
    assert list(exported['state_dict']) == list(plain.state_dict())
    plain.load_state_dict(exported['state_dict'], strict=True)
    data = model.eval().data_preprocessor(batch(), False)
    assert torch.equal(plain.eval()(data['inputs']), model(data['inputs']))

    torch.save(exported, tmp_path / 'teacher.pth')
    distiller = builders.distiller(
        student=narrow(),
        teacher=dict(cfg=wide(), checkpoint=str(tmp_path / 'teacher.pth')),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2')),
        probe_size=32,
    ).train()
    assert torch.equal(distiller.teacher.head.fc.weight, model.teacher.head.fc.weight)
    optim_wrapper = OptimWrapper(torch.optim.Adam(distiller.parameters(), lr=1e-3))
    hints = [float(builders.step(distiller, optim_wrapper, batch())['distill.loss_hint']) for _ in range(10)]
    assert hints[-1] < hints[0]


def test_a_student_starts_from_a_branch(tmp_path):
    model = small()
    torch.save(export_part(dict(state_dict=model.state_dict()), 'branches.0'), tmp_path / 'branch.pth')
    torch.manual_seed(1)
    distiller = builders.distiller(
        'Distiller',
        student=narrow(),
        teacher=wide(),
        terms=dict(loss_kd=dict(type='mmsokd.KDLoss', **FC)),
        probe_size=32,
    )
    start = copy.deepcopy(distiller.student.state_dict())
    fill(distiller, str(tmp_path / 'branch.pth'), strict=False)  # as `load_from`
    branch = model.branches[0].state_dict()
    assert {name.split('.')[1] for name in start if name not in branch} == {'layer0', 'layer1'}
    for name, value in distiller.student.state_dict().items():
        assert torch.equal(value, branch.get(name, start[name]))


def test_fine_tuning_starts_from_the_checkpoint(tmp_path):
    plain = MODELS.build(wide())
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'teacher.pth')
    model = small(teacher=dict(cfg=wide(), checkpoint=str(tmp_path / 'teacher.pth')))
    scratch = small(teacher=dict(cfg=wide()))
    branch = model.branches[0].head.fc.weight.clone()
    for net in (model, scratch):
        net.init_weights()  # as the Runner does
    assert torch.equal(model.teacher.head.fc.weight, plain.head.fc.weight)
    assert not torch.equal(scratch.teacher.head.fc.weight, plain.head.fc.weight)
    assert not torch.equal(model.branches[0].head.fc.weight, branch)


def test_a_plain_checkpoint_fills_the_teacher(tmp_path):
    plain = MODELS.build(wide())
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    model = small()
    fill(model, str(tmp_path / 'plain.pth'), strict=False)
    assert torch.equal(model.teacher.head.fc.weight, plain.head.fc.weight)


# ---- wrong configs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(stage=STAGES), r"model\.stage: expected one of .*nearest: \['stages'\]"),
        (dict(stages='backbone.layer1'), r"^stages: expected a list of paths.*found 'backbone\.layer1'"),
        (dict(stages=[]), r'^stages: expected a list of paths.*found \[\]'),
        (dict(stages=None), r'^stages: expected a list of paths.*found None'),
        (dict(teacher=None), r'^teacher: expected .*found None'),
        (dict(student=None), r'^student: expected .*found None'),
        (dict(stages=['backbone.layer9']), r"^stages\[0\]\.teacher: .*found 'backbone\.layer9'; nearest: \['backbone"),
        (
            dict(stages=[dict(teacher='backbone.layer1', student='backbone.layr1')]),
            r"^stages\[0\]\.student: .*found 'backbone\.layr1'; nearest: \['backbone\.layer1",
        ),
        (dict(stages=[dict(teacher='backbone.layer1')]), r'^stages\[0\]: expected a path or dict\(teacher='),
        (
            dict(stages=['backbone[0]']),
            r"^stages\[0\]\.student: expected a path without an index, found 'backbone\[0\]'",
        ),
        (dict(stages=['backbone']), r'^stages\[0\]\.student: expected a stage'),
        (dict(stages=['neck']), r'^stages\[0\]\.(student|teacher): expected a layer that gives one map'),
        (
            dict(stages=['backbone.layer2', 'backbone.layer1']),
            r"^stages\[1\]\.student: expected a layer that runs after 'backbone\.layer2', found 'backbone\.layer1'",
        ),
        (dict(kl='head.fc'), r"^kl: expected a dict with 'tap', found 'head\.fc'"),
        (dict(kl=dict(FC, temperature=2)), r'^kl\.temperature: expected one of'),
        (dict(kl=dict(FC, taw=2)), r"^kl\.taw: .*nearest: \['ta[up]'\]"),
        (dict(kl=dict(FC, tau=0)), r'^kl\.tau: expected a number > 0, found 0'),
        (dict(kl=dict(tap='head.fcs')), r"^kl\.tap in 'student': .*nearest: \['head\.fc'"),
        (dict(kl=dict(FC, loss_weight=-1)), r'^kl\.loss_weight: expected a number >= 0'),
        (dict(student=dict(cfg='nowhere.py')), r'^student\.cfg: expected a config file'),
        (dict(teacher=dict(cfg='x.py', autocast='bfloat16')), r'^teacher\.autocast: expected none, which is for a'),
        (dict(teacher=dict(cfg=dict(type='Nothing'))), r'^teacher\.cfg: Nothing is not in'),
        (dict(teacher_weight=-1), r'^teacher_weight: expected a number >= 0, found -1'),
        (dict(branch_weight='1'), r"^branch_weight: expected a number >= 0, found '1'"),
        (dict(detach_teacher='no'), r"^detach_teacher: expected True or False, found 'no'"),
        (dict(share_head=1), r'^share_head: expected True or False, found 1'),
        (dict(probe_size=0), r'^probe_size: expected an integer >= 1, found 0'),
        (dict(transform=dict(type='mmsokd.LinearAdapter')), r'^transform\.type: expected an adapter of maps'),
        (dict(transform=dict(type='mmsokd.KDLoss')), r"^transform\.type: expected an adapter, found 'mmsokd\.KDLoss'"),
        (
            dict(transform=dict(type='mmsokd.ConvAdapter', kernel=3)),
            r"^transform\.kernel: .*nearest: \['kernel_size'\]",
        ),
    ],
)
def test_tells_the_key(kwargs, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        small(**{'size': kwargs.pop('probe_size', 32), **kwargs})


def test_another_number_of_classes_is_told():
    student = narrow()
    student['head']['num_classes'] = 7
    with pytest.raises(ValueError, match=r'^kl\.adapter: expected equal channels .* 7 and 5 .*same classes'):
        trainer(wide(), student)


def test_a_stage_that_the_neck_reads_is_asked_for():
    """FPN reads layer2, layer3 and layer4: a branch from layer3 on wants layer2, too."""
    with pytest.raises(ValueError, match=r'^stages\[0\]\.student: expected a stage whose map, .* list every earlier'):
        trainer(retinanet(24), retinanet(16), DET, ['backbone.layer3'], 128)


def test_logits_before_a_stage_are_told():
    with pytest.raises(
        ValueError, match=r"^kl\.tap: expected logits .* is 'backbone\.layer2', found 'backbone\.layer1'$"
    ):
        trainer(classifier(12), classifier(8), dict(tap='backbone.layer1'), ['backbone.layer1', 'backbone.layer2'], 64)


def test_an_auxiliary_head_is_looked_at():
    """It reads layer1, which the decode head does not."""
    student = segmentor(8, auxiliary_head=dict(AUX, in_channels=8, in_index=0))
    with pytest.raises(ValueError, match=r'^stages\[0\]\.student: expected a stage whose map'):
        trainer(segmentor(12), student, SEG, ['backbone.layer2'], 64)
    trainer(segmentor(12), student, SEG, ['backbone.layer1', 'backbone.layer2'], 64)


def test_tokens_of_a_student_are_refused():
    student = classifier(backbone=VIT, neck=None, head=dict(type='VisionTransformerClsHead', in_channels=24))
    stages = [dict(teacher='backbone.layer2', student='backbone.layers.1')]
    with pytest.raises(ValueError, match=r'^stages\[0\]\.student: '):
        trainer(classifier(8), student, dict(teacher_tap='head.fc', student_tap='head.layers.head'), stages, 64)


@pytest.mark.parametrize('side', ['teacher', 'student'])
def test_logits_that_a_training_forward_computes_twice_are_refused(side, monkeypatch):
    model = small()
    net = model.teacher if side == 'teacher' else model.branches[1]
    monkeypatch.setattr(
        net.head, 'pre_logits', lambda feats: net.head.fc(feats[-1]) * 0 @ net.head.fc.weight + feats[-1]
    )
    with pytest.raises(ValueError, match=rf"^{side}: tap 'head\.fc': expected 1 calls of it .* found 2"):
        losses_of(model, batch())


def test_a_loss_that_is_no_number_stops_it():
    model = small()
    with torch.no_grad():
        model.branches[1].head.fc.weight.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match=r'sftn\.loss_branch2, sftn\.loss_kl2: expected a finite loss'):
        losses_of(model, batch())
