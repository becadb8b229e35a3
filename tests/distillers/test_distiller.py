"""The contract of the distiller: who learns, who is saved, what is run."""

import copy
import re

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mmsokd.distillers.teacher import Normalization, Teacher
from mmsokd.registry import MODELS
from tests.builders import IMAGENET, distiller, losses_of, raw_batch, retinanet, step

NAMES = 'FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet'
FITNET = dict(type='mmsokd.FitNetLoss', tap='neck')


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def optim_wrapper(model, cls=OptimWrapper, **kwargs):
    return cls(optimizer=torch.optim.SGD(model.parameters(), lr=0.01), **kwargs)


def test_log_names():
    losses = losses_of(distiller())
    assert {'loss_cls', 'loss_bbox', 'distill.loss_hint', 'sokd.loss_agreement', 'sokd.loss_area'} <= set(losses)
    assert {'sokd.aug', 'sokd.policy_entropy', 'sokd.norm_ratio', 'sokd.mask_cover', 'sokd.heat_std'} <= set(losses)
    plain = losses_of(distiller('Distiller'))
    assert not [name for name in plain if name.startswith('sokd')]


def test_total_is_the_sum_of_the_losses():
    model = distiller()
    losses = losses_of(model)
    total, log = model.parse_losses(losses)
    by_hand = sum(
        sum(x.mean() for x in v) if isinstance(v, list) else v.mean() for k, v in losses.items() if 'loss' in k
    )
    torch.testing.assert_close(total, by_hand)
    assert not log['sokd.aug'].requires_grad


def test_only_student_and_adapters_learn():
    model = distiller().train()
    model.parse_losses(losses_of(model))[0].backward()
    learns = {name.split('.')[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {'student', 'terms', 'areas'}
    forgotten = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not forgotten  # DDP without find_unused_parameters
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_hint_draws_the_student_towards_the_teacher():
    model = distiller('Distiller').train()
    losses = losses_of(model)
    grads = torch.autograd.grad(losses['distill.loss_hint'], model.student.neck.fpn_convs[0].conv.weight)
    assert grads[0].abs().sum() > 0


def test_hint_is_the_mean_squared_error_of_the_levels():
    model = distiller(
        'Distiller', terms=dict(loss_hint=dict(FITNET, loss_weight=3.0, adapter=None)), teacher=retinanet(16)
    )
    model.eval()
    data = model.data_preprocessor(raw_batch(), False)
    student, teacher = model.student.extract_feat(data['inputs']), model.teacher.extract_feat(data['inputs'])
    by_hand = 3.0 * sum(((s - t) ** 2).mean() for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(losses_of(model)['distill.loss_hint'], by_hand)


def test_teacher_is_frozen_in_eval_and_saved_nowhere():
    model = distiller()
    model.teacher.backbone.conv1 = nn.Sequential(model.teacher.backbone.conv1, nn.Dropout(0.5))
    before = snapshot(model.teacher)
    assert model.train() is model
    assert model.eval() is model
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    images = torch.randn(2, 3, 64, 64)
    once, again = (model._teachers['teacher'].features(images, None)['neck'] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    wrapper = optim_wrapper(model)
    for i in range(3):
        step(model, wrapper, raw_batch(seed=i))
    after = snapshot(model.teacher)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    held = {id(p) for group in wrapper.param_groups for p in group['params']} | {id(p) for p in model.parameters()}
    assert held.isdisjoint(id(p) for p in model.teacher.parameters())
    assert held.isdisjoint(id(b) for b in model.teacher.buffers())
    roots = {name.split('.')[0] for name in model.state_dict()}
    assert roots <= {'student', 'terms', 'areas', 'refine'}


def test_ema_copy_shares_the_teacher():
    model = distiller()
    ema = ExponentialMovingAverage(model)
    assert ema.module.teacher is model.teacher
    assert ema.module.student is not model.student
    step(model, optim_wrapper(model))
    ema.update_parameters(model)


def test_deepcopy_after_a_step_trains_on():
    model = distiller().train()
    step(model, optim_wrapper(model))
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    a = losses_of(model)['distill.loss_hint']
    torch.manual_seed(1)
    b = losses_of(twin)['distill.loss_hint']
    torch.testing.assert_close(a, b)
    step(twin, optim_wrapper(twin))


def autograd_tensors(value, seen, path='model'):
    """Paths of every tensor with a graph that is reachable from ``value``."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return [path] if value.grad_fn is not None else []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple, set)):
        items = enumerate(value)
    elif hasattr(value, '__dict__') and (type(value).__module__.startswith(('mm', 'torch.nn'))):
        items = vars(value).items()
    else:
        return []
    return [found for k, v in list(items) for found in autograd_tensors(v, seen, f'{path}.{k}')]


def test_nothing_keeps_autograd_tensors():
    model = distiller().train()
    for neck in model.refine.necks.values():
        neck.searching = True
    model.parse_losses(losses_of(model))[0].backward()
    assert autograd_tensors(model, set()) == []
    assert autograd_tensors(model._teachers, set()) == []
    modules = [*model.modules(), *model.teacher.modules()]
    assert not any(m._forward_hooks or 'forward' in vars(m) for m in modules)


def test_teacher_stops_after_its_deepest_tap():
    model = distiller('Distiller', terms=dict(loss_hint=dict(FITNET, tap='backbone.layer3')))
    runs = []
    for name in ('backbone.layer2', 'backbone.layer3.1.conv2', 'backbone.layer4', 'neck', 'bbox_head'):
        model.teacher.get_submodule(name).register_forward_hook(lambda *_, n=name: runs.append(n))
    losses_of(model)
    assert runs == ['backbone.layer2', 'backbone.layer3.1.conv2']


def test_a_tapped_head_runs_just_so_far():
    model = distiller('Distiller', terms=dict(loss_hint=dict(FITNET, tap='bbox_head.retina_cls')))
    runs = []
    model.teacher.bbox_head.retina_reg.register_forward_hook(lambda *_: runs.append('reg'))
    losses_of(model)
    # forward_single computes the regression after the classification, level by level: the last is not needed
    assert len(runs) == 2


def test_predict_and_tensor_are_the_students():
    model = distiller().eval()
    data = model.data_preprocessor(raw_batch(), False)
    with torch.no_grad():
        ours, plain = model(**data, mode='tensor'), model.student(**data, mode='tensor')
    torch.testing.assert_close(ours, plain)
    ours, plain = model.test_step(raw_batch()), model.student.test_step(raw_batch())
    torch.testing.assert_close(ours[0].pred_instances.bboxes, plain[0].pred_instances.bboxes)


@pytest.mark.parametrize('search', [False, True])
def test_bf16_autocast(search):
    model = distiller().train()
    for neck in model.refine.necks.values():
        neck.searching = search
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model)
    for name in ('distill.loss_hint', 'sokd.loss_agreement', 'sokd.loss_area'):
        assert losses[name].dtype == torch.float32
        assert losses[name].isfinite()
    model.parse_losses(losses)[0].backward()


def test_gradient_accumulation_and_clipping():
    model = distiller().train()
    wrapper = optim_wrapper(model, accumulative_counts=2, clip_grad=dict(max_norm=1.0))
    wrapper.initialize_count_status(model, 0, 4)
    before = snapshot(model.student)
    step(model, wrapper)
    assert torch.equal(before['bbox_head.retina_cls.weight'], model.student.bbox_head.retina_cls.weight)
    step(model, wrapper)
    assert not torch.equal(before['bbox_head.retina_cls.weight'], model.student.bbox_head.retina_cls.weight)


def test_state_dict_round_trip_is_exact():
    model, other = distiller(), distiller(student=retinanet(16))
    step(model, optim_wrapper(model))
    other.load_state_dict(model.state_dict(), strict=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_plain_students_checkpoint_fills_the_student():
    from mmengine.runner.checkpoint import _load_checkpoint_to_model

    plain, model = MODELS.build(retinanet(16)), distiller()
    _load_checkpoint_to_model(model, dict(state_dict=plain.state_dict()))
    for name, value in plain.state_dict().items():
        assert torch.equal(model.student.state_dict()[name], value)


# ---- terms ----------------------------------------------------------------------------------------------------------


def test_keep_host_off_leaves_the_area_loss_in_its_place():
    losses = losses_of(distiller(keep_host=False))
    assert 'distill.loss_hint' not in losses
    assert losses['sokd.loss_area'] > 0
    with pytest.raises(ValueError, match='keep_host'):
        distiller('Distiller', keep_host=False)


def test_a_term_opts_out_of_the_plugins():
    terms = dict(loss_a=FITNET, loss_b=dict(FITNET, refine=False, areas=False))
    model = distiller(terms=terms)
    assert set(model.areas.detectors) == {'loss_a'}
    assert model.refine.names == ['loss_a']


def test_attention_transfer_gets_an_adapter_where_a_plugin_compares_channels():
    terms = dict(loss_at=dict(type='mmsokd.ATLoss', tap='neck'))
    assert sum(p.numel() for p in distiller('Distiller', terms=terms).terms.parameters()) == 0
    refined = distiller(terms=terms, areas=None)
    losses_of(refined)
    assert sum(p.numel() for p in refined.terms.parameters()) > 0
    with pytest.raises(ValueError, match='equal channels without an adapter'):
        distiller(terms=dict(loss_at=dict(terms['loss_at'], adapter=None)))


def test_warm_up_from_zero_without_an_adapter():
    terms = dict(loss_hint=dict(FITNET, loss_weight=[(0.0, 0.0), (0.5, 1.0)]))
    losses = losses_of(distiller('Distiller', teacher=retinanet(16), terms=terms))
    assert losses['distill.loss_hint'] == 0


def test_a_tap_that_teaches_nothing_is_told(monkeypatch):
    told = []
    monkeypatch.setattr('mmsokd.distillers.base.print_log', lambda text, *_: told.append(text))
    student = retinanet(16)
    student['backbone']['with_cp'] = True  # activation checkpointing: inside a block there is no graph
    model = distiller('Distiller', student=student, terms=dict(loss_hint=dict(FITNET, tap='backbone.layer3.0.conv2')))
    for _ in range(2):
        losses_of(model.train())
    assert len(told) == 1
    assert "tap 'backbone.layer3.0.conv2' carries no gradient" in told[0]
    whole = distiller('Distiller', student=student, terms=dict(loss_hint=dict(FITNET, tap='backbone.layer3'))).train()
    losses_of(whole)['distill.loss_hint'].backward()
    assert whole.student.backbone.layer3[0].conv2.weight.grad is not None
    assert len(told) == 1


def test_inline_teacher_without_statistics_sees_what_the_student_sees():
    teacher = retinanet(24)
    top = teacher.pop('data_preprocessor')
    model = distiller('Distiller', teacher=teacher)
    images = torch.randn(1, 3, 32, 32)
    assert model._teachers['teacher'].prepare(images, None) is images
    student = retinanet(16)
    student.pop('data_preprocessor')
    model = distiller('Distiller', student=student, teacher=teacher, data_preprocessor=top)
    assert model._teachers['teacher'].prepare(images, None) is images


def test_compiles_once():
    model = distiller(terms=dict(loss_hint=FITNET, loss_cls=dict(FITNET, tap='bbox_head.retina_cls'))).train()
    clock = MessageHub.get_current_instance()
    data = model.data_preprocessor(raw_batch(), True)
    torch.manual_seed(1)
    plain = model(**copy.deepcopy(data), mode='loss')
    model.refine.necks['shared'].policy.draws -= 1
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(model.forward, backend=backend)
    losses = compiled(**copy.deepcopy(data), mode='loss')
    assert plain.keys() == losses.keys()
    torch.testing.assert_close(losses['distill.loss_hint'], plain['distill.loss_hint'], rtol=1e-3, atol=1e-4)
    model.parse_losses(losses)[0].backward()
    convs = sum('conv' in target for graph in graphs for target in graph)
    assert convs >= sum('.conv' in name for name, _ in model.student.backbone.named_modules())  # it was compiled
    known = len(graphs)
    for i in range(2):
        clock.update_info('iter', i + 1)
        compiled(**model.data_preprocessor(raw_batch(seed=i + 1), True), mode='loss')
    assert len(graphs) == known
    clock.update_info('iter', 0)


def test_several_teachers_and_the_student_itself():
    terms = dict(
        loss_a=dict(FITNET, teacher='big'),
        loss_b=dict(FITNET, teacher='small', adapter=dict(type='mmsokd.ConvAdapter')),
        loss_self=dict(FITNET, tap='backbone.layer2', teacher='student'),
    )
    model = distiller('Distiller', teacher=None, teachers=dict(big=retinanet(24), small=retinanet(16)), terms=terms)
    losses = losses_of(model)
    assert losses['distill.loss_self'] == 0
    assert losses['distill.loss_a'] > 0
    assert losses['distill.loss_b'] > 0
    with pytest.raises(ValueError, match=r"terms\.loss_a\.teacher: .*found 'bigg'; did you mean 'big'"):
        distiller(teacher=None, teachers=dict(big=retinanet()), terms=dict(loss_a=dict(FITNET, teacher='bigg')))


def test_scheduled_weight_and_the_teacher_nobody_needs():
    hub = MessageHub.get_current_instance()
    schedule = [(0.0, 1.0), (0.5, 0.0)]
    model = distiller(terms=dict(loss_hint=dict(FITNET, loss_weight=schedule))).train()
    runs = []
    model.teacher.register_forward_hook(lambda *_: runs.append(1))
    model.teacher.backbone.register_forward_hook(lambda *_: runs.append(1))
    try:
        hub.update_info('max_iters', 100)
        hub.update_info('iter', 25)
        assert model._weights() == {'loss_hint': 0.5}
        losses_of(model)
        assert runs
        runs.clear()
        hub.update_info('iter', 50)
        losses = losses_of(model)
        assert runs == []
        assert losses['distill.loss_hint'] == 0
        model.parse_losses(losses)[0].backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None]
    finally:
        hub.update_info('max_iters', 0)
        hub.update_info('iter', 0)


def test_at_replaces_the_layer_and_what_follows():
    terms = dict(loss_hint=dict(FITNET, tap='neck'))
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    model = distiller(terms=terms, refine=refine, areas=None).train()
    neck = model.refine.necks['shared']
    neck.searching = True
    losses = losses_of(model)
    assert 'sokd.loss_fit' in losses
    grads = torch.autograd.grad(losses['sokd.loss_fit'], list(model.student.parameters()), allow_unused=True)
    assert all(g is None for g in grads)  # the regressor learns, the student does not
    assert neck.pop_gradient() is not None
    model.parse_losses(losses)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]

    # what lies behind the layer follows it, what lies before does not
    neck.searching = False
    neck.policy.beta.fill_(1.0)
    neck.policy.magnitude.fill_(1.0)
    images = torch.randn(2, 3, 64, 64)
    teacher = model._teachers['teacher']
    teacher.probe(['backbone.layer2', 'neck', 'bbox_head.retina_cls'], 64)
    plain = teacher.features(images, None)
    refined = teacher.features(images, None, {'backbone.layer3': model.refine.begin(images).replace})
    assert torch.equal(plain['backbone.layer2'][0], refined['backbone.layer2'][0])
    for tap in ('neck', 'bbox_head.retina_cls'):
        assert not torch.equal(plain[tap][1], refined[tap][1])
    followed, _ = teacher.module.bbox_head.forward_single(refined['neck'][1])
    torch.testing.assert_close(refined['bbox_head.retina_cls'][1], followed)
    with pytest.raises(
        ValueError, match=r"terms\.loss_hint\.refine: expected True beside refine\.at='backbone\.layer3'"
    ):
        distiller(terms=dict(loss_hint=dict(FITNET, refine=False)), refine=refine)
    early = dict(type='mmsokd.FitNetLoss', tap='backbone.layer2', refine=False)
    distiller(terms=dict(loss_hint=FITNET, loss_early=early), refine=refine)  # its feature is there before that layer


# ---- where models come from -----------------------------------------------------------------------------------------


def test_teacher_as_config_path_and_scope(tmp_path):
    Config(dict(default_scope='mmdet', model=retinanet(24))).dump(tmp_path / 'teacher.py')
    for source in (
        str(tmp_path / 'teacher.py'),
        dict(cfg=str(tmp_path / 'teacher.py')),
        Config(dict(model=retinanet(24))),
    ):
        assert distiller('Distiller', teacher=source).teacher.neck.out_channels == 24
    model = distiller(
        'Distiller', student='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', teacher=retinanet(16, levels=5)
    )
    assert type(model.student).__name__ == 'RetinaNet'


def test_class_objects_as_type():
    from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet

    from mmsokd.distillers import SoKDDistiller
    from mmsokd.losses import FitNetLoss

    student = retinanet(16)
    student['type'] = RetinaNet
    student['data_preprocessor']['type'] = DetDataPreprocessor
    for key, cls in (('backbone', ResNet), ('neck', FPN), ('bbox_head', RetinaHead)):
        student[key]['type'] = cls
    cfg = dict(
        type=SoKDDistiller,
        student=ConfigDict(student),
        teacher=copy.deepcopy(student),
        terms=dict(loss_hint=dict(type=FitNetLoss, tap='neck')),
        probe_size=128,
    )
    losses_of(MODELS.build(ConfigDict(cfg)))


NEW_STYLE = """
from mmdet.models import {names}

from mmsokd.distillers import SoKDDistiller
from mmsokd.losses import FitNetLoss

plain = {plain}
model = dict(
    type=SoKDDistiller, student=plain, teacher=dict(cfg={teacher!r}), probe_size=128,
    terms=dict(loss_hint=dict(type=FitNetLoss, tap='neck')))
"""


def test_new_style_config_files(tmp_path):
    # class objects in place of names
    text = re.sub(
        r"'type': '(RetinaNet|ResNet|FPN|RetinaHead|DetDataPreprocessor)'", r"'type': \1", repr(retinanet(16))
    )
    (tmp_path / 'plain.py').write_text(f'from mmdet.models import {NAMES}\n\nmodel = {text}\n')
    teacher = str(tmp_path / 'plain.py')
    (tmp_path / 'new.py').write_text(NEW_STYLE.format(names=NAMES, plain=text, teacher=teacher))
    cfg = Config.fromfile(tmp_path / 'new.py')
    assert Config._is_lazy_import(str(tmp_path / 'new.py'))
    model = MODELS.build(cfg.model)
    losses_of(model)
    assert type(model.teacher).__name__ == type(model.student).__name__ == 'RetinaNet'
    by_path = distiller(student=teacher)
    assert type(by_path.student).__name__ == 'RetinaNet'


def test_top_level_data_preprocessor_reaches_the_student():
    student = retinanet(16)
    top = student.pop('data_preprocessor')
    model = distiller('Distiller', student=student, data_preprocessor=dict(top, mean=[1.0, 2.0, 3.0]))
    torch.testing.assert_close(model.student.data_preprocessor.mean.flatten(), torch.tensor([1.0, 2.0, 3.0]))
    assert model.data_preprocessor is model.student.data_preprocessor


def test_batch_is_renormalised_for_the_teacher():
    caffe = dict(type='DetDataPreprocessor', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], pad_size_divisor=32)
    teacher = Teacher('teacher', retinanet(24, data_preprocessor=caffe))
    student = MODELS.build(retinanet(16))
    teacher.match_normalization(student.data_preprocessor)
    batch = raw_batch(size=64)
    batch['inputs'][1] = batch['inputs'][1][:, :40, :56]  # a smaller picture: the rest is padding
    batch['data_samples'][1].set_metainfo(dict(img_shape=(40, 56)))
    ours = student.data_preprocessor(copy.deepcopy(batch), False)
    theirs = teacher.module.data_preprocessor(copy.deepcopy(batch), False)
    torch.testing.assert_close(
        teacher.prepare(ours['inputs'], ours['data_samples']), theirs['inputs'], rtol=1e-4, atol=1e-3
    )


def test_equal_normalisation_costs_nothing():
    teacher, student = Teacher('teacher', retinanet(24)), MODELS.build(retinanet(16))
    teacher.match_normalization(student.data_preprocessor)
    inputs = torch.randn(1, 3, 32, 32)
    assert teacher.prepare(inputs, None) is inputs
    assert Normalization.of(student.data_preprocessor).flip is IMAGENET['bgr_to_rgb']


@pytest.mark.cuda  # fp16 autocast has no CPU kernels
def test_fp16_on_a_gpu():
    model = distiller().cuda().train()
    wrapper = optim_wrapper(model, AmpOptimWrapper)
    log = step(model, wrapper)
    assert log['loss'].isfinite()
    assert next(model.teacher.parameters()).is_cuda


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_a_student_cast_as_a_whole_and_its_teacher(dtype):
    mean = dict(IMAGENET, mean=[0.0, 0.0, 0.0])
    teacher = retinanet(24, data_preprocessor=dict(type='DetDataPreprocessor', **mean))
    model = distiller(teacher=teacher).train().to(dtype)
    before = snapshot(model.teacher)
    samples = model.data_preprocessor(raw_batch(), True)['data_samples']
    total, _ = model.parse_losses(model.loss(torch.randn(2, 3, 64, 64, dtype=dtype), samples))
    total.backward()
    assert total.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model.teacher).items())


def test_a_feature_that_is_changed_in_place_is_read_as_its_layer_gave_it():
    model = distiller(terms=dict(loss_hint=dict(FITNET, tap='backbone.bn1'))).train()  # a ReLU in place follows
    (student, teacher) = model.terms['loss_hint'].specs[0]
    assert student.signed
    assert teacher.signed
    data = model.data_preprocessor(raw_batch(), True)
    backbone = copy.deepcopy(model.student.backbone)
    with model._tap as tapped:
        model.student(**data, mode='loss')
    torch.testing.assert_close(tapped['backbone.bn1'][0], backbone.bn1(backbone.conv1(data['inputs'])))


def test_a_replaced_feature_is_not_changed_in_place():
    model = distiller(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.bn1')).train()
    (neck,) = model.refine.necks.values()
    neck.searching = True
    step = model.refine.begin(torch.randn(1, 3, 64, 64))
    feat = torch.randn(1, 8, 32, 32)
    handed_on = step.replace(feat)
    kept = step._replaced[0].clone()
    handed_on.relu_()
    assert torch.equal(step._replaced[0], kept)


@pytest.mark.parametrize(('tap', 'signed'), [('neck', True), ('backbone.layer3', False)])
def test_a_sokd_adapter_that_the_config_names_is_told_the_sign_too(tap, signed):
    adapter = dict(type='mmsokd.SoKDAdapter', feat_channels=8)
    model = distiller('Distiller', terms=dict(loss_hint=dict(FITNET, tap=tap, adapter=adapter)))
    assert all((level.convs[-1].with_activation is False) == signed for level in model.terms['loss_hint'].adapter)
