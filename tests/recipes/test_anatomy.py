"""Stages, heads and pyramids are found in networks of many kinds."""

import pytest
from mmengine.config import Config

from mmsokd.distillers.build import build_model
from mmsokd.recipes import anatomy
from mmsokd.recipes.methods import LAST, NEXT_TO_LAST, find_method
from mmsokd.recipes.pairing import Pairing, make_plan
from mmsokd.recipes.sides import Side, survey_sides
from mmsokd.recipes.survey import Survey
from tests.builders import classifier, gfl, retinanet, segmentor, use_scope
from tests.test_configs_hosts import CONFIGS, load


def survey(model, size=64):
    return Survey(build_model('model', model), size)


def backbone(channels=8, **cfg):
    model = classifier(8, backbone=cfg)
    model['head']['in_channels'] = channels
    return model


SWIN = dict(
    type='SwinTransformer',
    arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 1, 1]),
    img_size=64,
    window_size=2,
)
VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=8, num_layers=8, num_heads=2, feedforward_channels=16),
    img_size=64,
    patch_size=16,
    out_type='avg_featmap',
)
CONVNEXT = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8]))
BRANCH = dict(num_modules=1, block='BASIC')
HRNET = dict(
    type='HRNet',
    extra=dict(
        stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(4,)),
        stage2=dict(BRANCH, num_branches=2, num_blocks=(1, 1), num_channels=(4, 8)),
        stage3=dict(BRANCH, num_branches=3, num_blocks=(1, 1, 1), num_channels=(4, 8, 16)),
        stage4=dict(BRANCH, num_branches=4, num_blocks=(1, 1, 1, 1), num_channels=(4, 8, 16, 32)),
    ),
)


@pytest.mark.parametrize(
    ('cfg', 'taps', 'strides'),
    [
        (dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), 'backbone.layer{1,2,3,4}', [4, 8, 16, 32]),
        (dict(type='MobileNetV2', widen_factor=0.25), 'backbone.layer{2,3,5,7}', [4, 8, 16, 32]),
        (dict(type='ShuffleNetV2', widen_factor=0.5), 'backbone.layers.{0,1,2}', [8, 16, 32]),
        (CONVNEXT, 'backbone.stages.{0,1,2,3}', [4, 8, 16, 32]),
        (SWIN, 'backbone.stages.{0,1,2,3}[0]', [4, 8, 16, 32]),
        (VIT, 'backbone.layers.{1,3,5,7}', [16, 16, 16, 16]),
        (HRNET, 'backbone[{0,1,2,3}]', [4, 8, 16, 32]),
    ],
    ids=lambda value: value.get('type') if isinstance(value, dict) else '',
)
def test_stages(cfg, taps, strides):
    """By the blocks that they are made of; HRNet's branches by what the backbone gives."""
    model = backbone(**cfg)
    del model['head']  # whose width does not matter here
    model.pop('neck')
    found = survey(model)
    before, numbers, after = taps.partition('{')[0], taps[taps.index('{') + 1 : taps.index('}')], taps.partition('}')[2]
    assert anatomy.stages(found) == [f'{before}{number}{after}' for number in numbers.split(',')]
    assert [found.specs(tap)[0].stride for tap in anatomy.stages(found)] == strides


# Pairs of one family; RepDistiller's hint layers of the others are the second in both, whatever their strides.
CIFAR = ['resnet110-resnet32', 'resnet32x4-resnet8x4', 'resnet56-resnet20', 'vgg13-vgg8', 'wrn-40-2-wrn-40-1']


@pytest.mark.parametrize('pair', CIFAR)
def test_fitnets_taps_of_the_cifar_pairs(pair):
    """The benchmark's hint layers are the last stages but one."""
    use_scope('mmpretrain')
    cfg = load(CONFIGS / 'classification' / 'fitnet' / f'fitnet_{pair}_1xb64_cifar100.py')
    term = cfg['model']['terms']['loss_hint']
    student, teacher = survey(cfg['model']['student'], 32), survey(Config.fromfile(cfg['model']['teacher']['cfg']), 32)
    plan = make_plan(find_method('--method', 'fitnet', 'classification'), student, teacher)
    assert plan.terms[0].student == plan.terms[0].teacher == [term['tap']]


def test_a_transformer_pairs_with_a_network_of_strides():
    """Where the teacher has one stride throughout, its stage of the student's is at the same depth, or is resized."""
    student, teacher = survey(classifier(8)), survey({**backbone(**VIT), 'neck': None})
    pairing = Pairing(student, teacher, 'classification')
    assert pairing.role(NEXT_TO_LAST) == (['backbone.layer3'], ['backbone.layers.5'])
    assert pairing.role(LAST) == (['backbone.layer4'], ['backbone.layers.7'])
    (term,) = make_plan(find_method('--method', 'sokd-sp', 'classification'), student, teacher).terms
    assert term.adapter == dict(type='mmsokd.SoKDAdapter', resize='bilinear')


def test_patches_divide_the_picture():
    """By 14 pixels they do not divide 256, so that tokens lie on no grid."""
    cfg = Config(dict(model=backbone(**{**VIT, 'img_size': 224, 'patch_size': 14}), default_scope='mmpretrain'))
    side = Side('student', 'vit.py', cfg, build_model('student', cfg), 'classification')
    assert not anatomy.stages(Survey(side.model, 256))
    (found,) = survey_sides([side])
    assert found.size == 224
    assert len(anatomy.stages(found)) == 4


def test_swins_stage_is_refined_at_its_last_block():
    """A stage that returns the size beside the tokens cannot be replaced as a whole."""
    student, teacher = survey(classifier(8)), survey({**backbone(64, **SWIN)})
    plan = make_plan(find_method('--method', 'sokd-kd', 'classification'), student, teacher)
    assert plan.refine['at'] == 'backbone.stages.2.blocks.1'
    assert plan.refine['student_at'] == 'backbone.layer3'
    assert 'resize' not in plan.refine


def test_heads():
    assert anatomy.logits(survey(retinanet(16)), 'detection') == 'bbox_head.retina_cls'
    assert anatomy.logits(survey(gfl(16)), 'detection') == 'bbox_head.gfl_cls'
    assert anatomy.box_distributions(survey(gfl(16))) == 'bbox_head[1]'
    found = survey(segmentor(8))
    assert anatomy.logits(found, 'segmentation') == 'decode_head.conv_seg'
    assert anatomy.head_feature(found, 'segmentation') == 'decode_head.bottleneck'
    found = survey(segmentor(8, decode_head=dict(
        type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=2, concat_input=False, num_classes=4,
        norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss'))))  # fmt: skip
    assert anatomy.head_feature(found, 'segmentation') == 'decode_head.convs'  # with the dropout behind it
    assert anatomy.logits(survey(classifier(8)), 'classification') == 'head.fc'
    assert anatomy.head_feature(survey(classifier(8)), 'classification') == 'neck'


def test_detector_without_a_neck():
    model = retinanet(64, neck=None, levels=1)
    model['backbone']['out_indices'] = (3,)
    model['bbox_head']['anchor_generator']['strides'] = [32]
    assert anatomy.pyramid(survey(model)) == 'backbone'


def test_no_head():
    model = classifier(8)
    del model['head']
    with pytest.raises(
        ValueError, match=r"expected a 'head' that gives logits \(N, K\), found that no 'head' does not"
    ):
        anatomy.logits(survey(model), 'classification')
