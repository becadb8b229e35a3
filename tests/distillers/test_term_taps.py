"""What a term may tap: one path or several; maps, vectors and tokens; and what it says where the two sides differ."""

import functools
import re

import pytest
import torch
from torch.nn import functional as F

from mmsokd.losses import TermLoss
from tests.builders import classifier, distiller, losses_of, raw_cls_batch, retinanet, segmentor

FITNET = dict(type='mmsokd.FitNetLoss')
STAGES = [f'backbone.layer{i}' for i in (1, 2, 3, 4)]


def classifiers(kind='Distiller', **term):
    widths = dict(student=classifier(8), teacher=classifier(12))
    return distiller(kind, **widths, terms=dict(loss_a=dict(FITNET, **term)), probe_size=64).train()


def test_a_list_of_paths_is_a_pyramid():
    review = dict(type='mmsokd.ReviewKDLoss', adapter=dict(type='mmsokd.ReviewKDAdapter', norm_cfg=None), tap=STAGES)
    model = classifiers('SoKDDistiller', **review)
    assert [(s.channels, t.channels, s.stride) for s, t in model.terms['loss_a'].specs] == [
        (8, 12, 4),
        (16, 24, 8),
        (32, 48, 16),
        (64, 96, 32),
    ]
    losses = losses_of(model, raw_cls_batch())
    assert losses['distill.loss_a'] > 0
    assert losses['sokd.loss_area'] > 0
    model.parse_losses(losses)[0].backward()
    assert model.student.backbone.layer4[1].conv2.weight.grad.abs().sum() > 0


def test_a_list_gives_what_a_module_of_many_outputs_gives():
    backbone = dict(classifier(8)['backbone'], out_indices=(0, 1, 2, 3))
    student = classifier(8, backbone=backbone)
    terms = dict(
        loss_a=dict(FITNET, tap=STAGES, teacher='student', adapter=None),
        loss_b=dict(FITNET, student_tap=STAGES, teacher_tap='backbone', teacher='student', adapter=None),
    )
    model = distiller('Distiller', student=student, teacher=None, terms=terms, probe_size=64).train()
    losses = losses_of(model, raw_cls_batch())
    assert losses['distill.loss_a'] == losses['distill.loss_b'] == 0


@pytest.mark.parametrize('tap', [[], ['neck', 3], [['neck']], None, 3])
def test_something_else_than_paths(tap):
    message = re.escape(f'a path, or a list of paths, found {tap!r}')
    with pytest.raises(ValueError, match=rf'^terms\.loss_a\.tap: expected {message}'):
        classifiers(tap=tap)
    with pytest.raises(ValueError, match=rf'^terms\.loss_a\.teacher_tap: expected {message}'):
        classifiers(student_tap='neck', teacher_tap=tap)


@pytest.mark.parametrize(
    ('taps', 'message'),
    [
        (dict(tap='nek'), r"^terms\.loss_b\.tap in 'student': expected the path .* found 'nek'; nearest: \['neck'"),
        (dict(tap=['neck', 'nek']), r"^terms\.loss_b\.tap in 'student': .*found 'nek'"),
        (dict(student_tap='nek[0]', teacher_tap='neck'), r"^terms\.loss_b\.student_tap in 'student': .*found 'nek'"),
        (dict(student_tap='neck', teacher_tap='nek'), r"^terms\.loss_b\.teacher_tap in 'teacher': .*found 'nek'"),
        (dict(tap=['neck', 'neck[']), r"^terms\.loss_b\.tap: expected 'path\.of\.module'.*found 'neck\['"),
    ],
)
def test_a_path_that_is_not_there_is_told_by_its_terms_key(taps, message):
    terms = dict(loss_a=dict(FITNET, tap='neck'), loss_b=dict(FITNET, **taps))
    with pytest.raises(ValueError, match=message):
        distiller('Distiller', student=classifier(8), teacher=classifier(12), terms=terms, probe_size=64)


def test_vectors_of_unequal_width():
    model = classifiers(tap='neck')
    (linear,) = model.terms['loss_a'].adapter
    data = model.data_preprocessor(raw_cls_batch(), True)
    with model._tap as tapped:
        model.student(**data, mode='loss')
    student, teacher = tapped['neck'][0], model._teachers['teacher'].features(**data)['neck'][0]
    assert (student.shape, teacher.shape) == ((2, 64), (2, 96))
    expected = F.mse_loss(student @ linear.linear.weight.T + linear.linear.bias, teacher)
    got = model.terms['loss_a'](model.terms['loss_a'].adapt([student], [teacher]), [teacher])
    torch.testing.assert_close(got, expected)
    assert losses_of(model, raw_cls_batch())['distill.loss_a'] > 0


@pytest.mark.parametrize(
    ('term', 'message'),
    [
        (
            dict(tap='neck', adapter=dict(type='mmsokd.ConvAdapter', resize='conv')),
            r"loss_a\.adapter: expected none, or dict\(type='mmsokd\.LinearAdapter'\), for vectors of 64 .*ConvAdapter",
        ),
        (
            dict(tap='backbone.layer2', adapter=dict(type='mmsokd.LinearAdapter')),
            r"loss_a\.adapter: expected none, or dict\(type='mmsokd\.ConvAdapter'\), for a map of 16 .*LinearAdapter",
        ),
        (dict(tap='neck', adapter=None), r'equal channels without an adapter, found 64 and 96 .*LinearAdapter'),
        (
            dict(
                student_tap='backbone.layer4',
                teacher_tap='neck',
                adapter=dict(type='mmsokd.ConvAdapter', resize='bilinear'),
            ),
            r'loss_a: expected .*of one kind, found a map of 64 channels and size \(2, 2\) and vectors of 96',
        ),
        (dict(tap='neck', type='mmsokd.ReviewKDLoss'), r'terms\.loss_a.*vectors'),
    ],
)
def test_kinds_that_do_not_fit(term, message):
    with pytest.raises(ValueError, match=message):
        classifiers(**term)


def test_a_loss_that_looks_at_pictures_may_compare_a_map_with_vectors():
    model = classifiers(type='mmsokd.RKDLoss', student_tap='backbone.layer4', teacher_tap='neck')
    assert losses_of(model, raw_cls_batch(n=4))['distill.loss_a'] > 0


class MapsAlone(TermLoss):
    ranks = (4,)

    def forward(self, student, teacher):
        return (student.mean((2, 3)) - teacher.mean((2, 3))).square().mean()


def test_a_loss_of_maps_is_told_at_once_what_is_none():
    adapter = dict(type='mmsokd.ConvAdapter')
    assert losses_of(classifiers(type=MapsAlone, tap='backbone.layer2', adapter=adapter), raw_cls_batch())
    message = r"terms\.loss_a: expected maps \(N, C, H, W\), found vectors of 64 .* at 'neck' .*a stage of the backbone"
    with pytest.raises(ValueError, match=message):
        classifiers(type=MapsAlone, tap='neck')


def test_levels_of_other_strides_pair_by_order_where_a_resize_is_given():
    sides = dict(student_tap='neck[:2]', teacher_tap='neck[1:]')
    adapter = dict(type='mmsokd.ConvAdapter', resize='bilinear')
    model = distiller('Distiller', terms=dict(loss_a=dict(FITNET, **sides, adapter=adapter))).train()
    assert [(s.stride, t.stride) for s, t in model.terms['loss_a'].specs] == [(8, 16), (16, 32)]
    assert losses_of(model)['distill.loss_a'] > 0
    with pytest.raises(ValueError, match=r'found strides \[8, 16\] .* and \[16, 32\] .*one term a level') as caught:
        distiller(terms=dict(loss_a=dict(FITNET, **sides)))
    assert '][' not in str(caught.value)
    with pytest.raises(ValueError, match=r'found strides \[8, 16, 32, 64\] .* and \[8, 16, 32\]'):
        distiller(student=retinanet(16, levels=4), terms=dict(loss_a=dict(FITNET, tap='neck', adapter=adapter)))
    with pytest.raises(ValueError, match=r"strides \[8, 16, 32\] alone, .*\(student_tap='neck\[:3\]'\)"):
        distiller(student=retinanet(16, levels=4), terms=dict(loss_a=dict(FITNET, tap='neck')))


SHIFTED = dict(student_tap=STAGES[:3], teacher_tap=STAGES[1:])


@pytest.mark.parametrize('kind', ['Distiller', 'SoKDDistiller'])
def test_fused_levels_may_have_other_strides(kind):
    """As ReviewKD's ResNet-32x4 and ShuffleNet have: its adapter brings each level to its teacher's size."""
    model = classifiers(kind, type='mmsokd.ReviewKDLoss', **SHIFTED)
    assert [(s.stride, t.stride) for s, t in model.terms['loss_a'].specs] == [(4, 8), (8, 16), (16, 32)]
    assert losses_of(model, raw_cls_batch(n=4))['distill.loss_a'] > 0


def test_a_loss_that_looks_at_pictures_takes_levels_of_any_strides():
    model = classifiers(type='mmsokd.SPLoss', **SHIFTED)
    assert [(s.stride, t.stride) for s, t in model.terms['loss_a'].specs] == [(4, 8), (8, 16), (16, 32)]
    assert losses_of(model, raw_cls_batch(n=4))['distill.loss_a'] > 0
    with pytest.raises(ValueError, match='loss_a: expected equal sizes'):
        classifiers('SoKDDistiller', type='mmsokd.SPLoss', **SHIFTED)  # its plug-ins compare cell by cell


def test_levels_are_fused_from_the_deepest():
    with pytest.raises(ValueError, match=r'loss_a: expected the levels from fine to coarse, found strides \[16, 8\]'):
        classifiers(type='mmsokd.ReviewKDLoss', tap=['backbone.layer3', 'backbone.layer2'])


@pytest.mark.parametrize('kind', ['KD', 'DKD', 'DIST'])
def test_a_softmax_wants_two_classes(kind):
    models = dict(student=segmentor(8), teacher=segmentor(12))
    for model in models.values():
        model['decode_head'] = dict(model['decode_head'], num_classes=2, out_channels=1, threshold=0.3)
        model['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    term = dict(type=f'mmsokd.{kind}Loss', tap='decode_head.conv_seg')
    with pytest.raises(ValueError, match=r'terms\.loss_a.*: expected at least 2 classes .*, found 1 channel'):
        distiller('Distiller', **models, terms=dict(loss_a=term), probe_size=64)
    if kind == 'KD':
        term['activation'] = 'sigmoid'
        distiller('Distiller', **models, terms=dict(loss_a=term), probe_size=64)


def test_logits_keep_their_channels():
    message = r"terms\.loss_a\.adapter: expected none, or dict\(type='mmsokd\.ResizeAdapter'\), .*found ConvAdapter"
    models = dict(student=segmentor(8), teacher=segmentor(12))
    for kind in ('KDLoss', 'CWDLogitsLoss'):
        term = dict(type=f'mmsokd.{kind}', tap='decode_head.conv_seg', adapter=dict(type='mmsokd.ConvAdapter'))
        with pytest.raises(ValueError, match=message):
            distiller('Distiller', **models, terms=dict(loss_a=term), probe_size=64)


def test_areas_that_nobody_asked_for_leave_logits_alone():
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    kd = dict(type='mmsokd.KDLoss', tap='head.fc')
    build = functools.partial(
        distiller, student=classifier(8), teacher=classifier(12), refine=refine, terms=dict(loss_a=kd), probe_size=64
    )
    model = build().train()
    assert model.areas is None
    losses = losses_of(model, raw_cls_batch())
    assert losses['distill.loss_a'] > 0
    assert 'sokd.loss_area' not in losses
    with pytest.raises(ValueError, match='areas: expected a term that compares features'):
        build(areas=dict(type='mmsokd.DistinctiveAreaDetector'))
    with pytest.raises(ValueError, match='areas: expected a term that compares features'):
        build(keep_host=False)
