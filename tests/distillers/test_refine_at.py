"""``refine.at`` between any two networks: other layers, sizes and families, several teachers, and terms before it."""

import pytest
import torch
from torch.nn import functional as F

from tests.builders import classifier, distiller, losses_of, raw_cls_batch

KD = dict(type='mmsokd.KDLoss')
HINT = dict(type='mmsokd.FitNetLoss')
VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=64,
    patch_size=8,
    out_type='cls_token',
)


def vit(width):
    arch = dict(VIT['arch'], embed_dims=width)
    head = dict(type='VisionTransformerClsHead', in_channels=width)
    return classifier(backbone=dict(VIT, arch=arch), neck=None, head=head)


def mobilenet():
    backbone = dict(type='MobileNetV2', widen_factor=0.25)
    head = dict(type='LinearClsHead', in_channels=1280, loss=dict(type='CrossEntropyLoss', loss_weight=1.0))
    return classifier(backbone=backbone, head=head)


def build(student, source, at, terms=None, **refine):
    kwargs = dict(teacher=source) if 'type' in source else dict(teacher=None, teachers=source)
    model = distiller(
        student=student,
        **kwargs,
        terms=terms or dict(loss_kd=dict(KD, student_tap='head.fc', teacher_tap='head.fc')),
        refine=dict(type='mmsokd.FeatureAugmentationNeck', at=at, **refine),
        areas=None,
        probe_size=64,
    ).train()
    policy = model.refine.necks['shared'].policy
    policy.beta.fill_(1.0)  # every drawn operation fires
    policy.magnitude.fill_(1.0)
    return model


HEADS = dict(cnn='head.fc', vit='head.layers.head')


@pytest.mark.parametrize(
    ('student', 'teacher', 'at', 'refine'),
    [
        (mobilenet, classifier, 'backbone.layer3', dict(student_at='backbone.layer4', resize='bilinear')),
        (classifier, lambda: vit(24), 'backbone.layers.0', dict(student_at='backbone.layer2')),
        (classifier, lambda: vit(24), 'backbone.layers.0', dict(student_at='backbone.layer3', resize='conv')),
        (lambda: vit(16), lambda: vit(24), 'backbone.layers.0', {}),
        (lambda: vit(16), classifier, 'backbone.layer2', dict(student_at='backbone.layers.1')),
    ],
    ids=['resnet-mobilenet', 'vit-resnet', 'vit-resnet-strided', 'vit-vit', 'resnet-vit'],
)
def test_logits_follow_between_families(student, teacher, at, refine):
    student, teacher = student(), teacher()
    taps = [HEADS['vit' if 'VisionTransformer' in side['backbone']['type'] else 'cnn'] for side in (student, teacher)]
    model = build(student, teacher, at, dict(loss_kd=dict(KD, student_tap=taps[0], teacher_tap=taps[1])), **refine)
    data = model.data_preprocessor(raw_cls_batch(), True)
    _, needed, replace, _ = model._begin(data['inputs'])
    (refined,) = model._teacher_features(**data, needed=needed, replace=replace)['teacher'][taps[1]]
    (plain,) = model._teachers['teacher'].features(**data)[taps[1]]
    assert refined.shape == (2, 5)
    assert (refined - plain).abs().min() > 0  # each picture's logits, class by class
    neck = model.refine.necks['shared']
    neck.searching = True
    losses = losses_of(model, raw_cls_batch())
    assert neck.pop_gradient() is not None
    assert losses['sokd.loss_fit'] > 0
    grads = torch.autograd.grad(
        losses['sokd.loss_fit'], list(model.student.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in grads)  # the regressor learns, the student does not
    model.parse_losses(losses)[0].backward()
    assert not [name for name, p in model.refine.named_parameters() if p.grad is None]


def test_tokens_are_refined_as_a_map_and_the_class_token_stays():
    model = build(vit(16), vit(24), 'backbone.layers.0', dict(loss_kd=dict(KD, tap='head.layers.head')))
    images, tokens = torch.zeros(2, 3, 64, 64), torch.randn(2, 65, 24)
    step = model.refine.begin(images)
    neck = model.refine.necks['shared']
    (expected,) = neck([tokens[:, 1:].transpose(1, 2).reshape(2, 24, 8, 8)], step.draws['shared'])
    replaced = step.replace(tokens)
    assert torch.equal(replaced[:, 0], tokens[:, 0])
    assert torch.equal(replaced[:, 1:].transpose(1, 2).reshape(2, 24, 8, 8), expected)
    assert not torch.equal(replaced, tokens)


def test_the_regressor_learns_the_refined_feature():
    model = build(classifier(8), classifier(12), 'backbone.layer3', student_at='backbone.layer2', resize='bilinear')
    step = model.refine.begin(torch.zeros(2, 3, 64, 64))
    step.replace(torch.randn(2, 48, 4, 4))
    student = torch.randn(2, 16, 8, 8)
    (conv,) = (m for m in model.refine.regressor.modules() if isinstance(m, torch.nn.Conv2d))
    small = (student[:, :, ::2] + student[:, :, 1::2]) / 2  # bilinear, by a half: the mean of two
    small = (small[..., ::2] + small[..., 1::2]) / 2
    adapted = torch.einsum('nchw,dc->ndhw', small, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
    expected = F.mse_loss(adapted, step._replaced[0])
    torch.testing.assert_close(step.fit([student]), expected)
    torch.testing.assert_close(step.finish()['sokd.aug'], expected.detach() / 2)


@pytest.mark.parametrize(
    ('at', 'refine', 'message'),
    [
        ('backbone.layer3', dict(student_at='backbone.layer2'), r"refine: expected equal sizes, .*give resize='bili"),
        (
            'backbone.layer3',
            dict(student_at='backbone.layer9'),
            r"refine\.student_at in 'student': .*found 'backbone\.layer9'",
        ),
        ('neck', {}, r'refine: expected maps \(N, C, H, W\), found vectors of 64 .*and vectors of 96'),
        ('backbone.layer9', dict(student_at='backbone.layer3'), r"refine\.at in 'teacher': .*found 'backbone\.layer9'"),
        ('backbone.layer9', {}, r"refine\.at in 'student': .*found 'backbone\.layer9'; nearest: \['backbone\.layer"),
        ('backbone[', {}, r"refine\.at: expected 'path\.of\.module'.*found 'backbone\['"),
        ('backbone.layer3', dict(resize='bilinaer'), r"^refine\.resize: expected one of .*did you mean 'bilinear'"),
        (None, dict(student_at='backbone.layer3'), r"refine\.student_at: expected None without 'at', found 'backbone"),
        (None, dict(resize='bilinear'), r"refine\.resize: expected None without 'at'"),
        ('backbone.layer3', dict(student_at=3), r'refine\.student_at: expected the path of a layer'),
        ('backbone.layer3', dict(teacher='b'), r"refine\.teacher: expected one of \['teacher'\], found 'b'"),
    ],
)
def test_what_cannot_be_is_told(at, refine, message):
    with pytest.raises(ValueError, match=message):
        build(classifier(8), classifier(12), at, **refine)


def test_sides_in_no_whole_ratio_are_told_by_the_key_that_the_config_has():
    strided = classifier(8, backbone=dict(classifier(8)['backbone'], strides=(1, 3, 2, 2)))
    with pytest.raises(
        ValueError, match=r"^refine\.resize: expected another than 'conv' where .*give resize='bilinear'"
    ):
        build(strided, classifier(12), 'backbone.layer2', resize='conv')


def test_of_several_teachers_one_is_named_and_refined():
    teachers = dict(a=classifier(8), b=classifier(12))
    terms = {f'loss_{name}': dict(KD, tap='head.fc', teacher=name) for name in teachers}
    with pytest.raises(ValueError, match=r"refine\.teacher: expected one of \['a', 'b'\], found None"):
        build(classifier(8), teachers, 'backbone.layer3', terms)
    with pytest.raises(ValueError, match=r"refine\.teacher: expected one of \['a', 'b'\], found 'student'"):
        build(classifier(8), teachers, 'backbone.layer3', terms, teacher='student')
    model = build(classifier(8), teachers, 'backbone.layer3', terms, teacher='b')
    data = model.data_preprocessor(raw_cls_batch(), True)
    _, needed, replace, _ = model._begin(data['inputs'])
    feats = model._teacher_features(**data, needed=needed, replace=replace)
    plain = {name: teacher.features(**data) for name, teacher in model._teachers.items()}
    assert torch.equal(feats['a']['head.fc'][0], plain['a']['head.fc'][0])
    assert not torch.equal(feats['b']['head.fc'][0], plain['b']['head.fc'][0])
    assert losses_of(model, raw_cls_batch())['sokd.loss_fit'] > 0


@pytest.mark.parametrize('refined', [True, False])
def test_a_feature_before_the_layer_is_refined_beside_the_teacher(refined):
    terms = dict(loss_kd=dict(KD, tap='head.fc'), loss_hint=dict(HINT, tap='backbone.layer2', refine=refined))
    model = build(classifier(8), classifier(12), 'backbone.layer3', terms)
    data = model.data_preprocessor(raw_cls_batch(), True)
    (plain,) = model._teachers['teacher'].features(**data)['backbone.layer2']
    seen = []
    model.terms['loss_hint'].losses[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    model(**data, mode='loss')
    assert torch.equal(seen[0], plain) is not refined
