"""One detector of each family, from mmdet's own configs made narrow: its taps are found and it makes a step."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config

from mmsokd.registry import MODELS
from tests.builders import raw_batch, use_scope

NECK = dict(type='mmsokd.FitNetLoss', tap='neck')


def override(model, changes):
    """Set values by dotted path; numbers are indices."""
    for path, value in changes.items():
        node = model
        *parents, last = path.split('.')
        for key in parents:
            node = node[int(key)] if key.isdigit() else node[key]
        node[last] = value
    return model


def fpn(channels):
    return {
        'backbone.depth': 18,
        'backbone.base_channels': 8,
        'backbone.init_cfg': None,
        'neck.in_channels': [8, 16, 32, 64],
        'neck.out_channels': channels,
    }


def two_stage(channels):
    changes = {
        **fpn(channels),
        'rpn_head.in_channels': channels,
        'rpn_head.feat_channels': channels,
        'roi_head.bbox_roi_extractor.out_channels': channels,
        'roi_head.bbox_head.in_channels': channels,
        'roi_head.bbox_head.fc_out_channels': 16,
    }
    return 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', changes


def one_stage(channels):
    changes = {**fpn(channels), 'bbox_head.in_channels': channels, 'bbox_head.feat_channels': channels}
    return 'retinanet/retinanet_r50_fpn_1x_coco.py', changes


def anchor_free(channels):
    changes = {**fpn(channels), 'bbox_head.in_channels': channels, 'bbox_head.feat_channels': channels}
    return 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', {**changes, 'bbox_head.norm_cfg': dict(type='BN')}


def yolox(channels):
    changes = {
        'backbone.deepen_factor': 0.33,
        'backbone.widen_factor': 0.125,
        'neck.in_channels': [32, 64, 128],
        'neck.out_channels': channels,
        'neck.num_csp_blocks': 1,
        'bbox_head.in_channels': channels,
        'bbox_head.feat_channels': channels,
        'data_preprocessor.batch_augments': None,
    }
    return 'yolox/yolox_s_8xb8-300e_coco.py', changes


def rtmdet(channels):
    changes = {
        'backbone.widen_factor': 0.125,
        'backbone.deepen_factor': 0.167,
        'backbone.norm_cfg': dict(type='BN'),
        'backbone.init_cfg': None,
        'neck.in_channels': [32, 64, 128],
        'neck.out_channels': channels,
        'neck.num_csp_blocks': 1,
        'neck.norm_cfg': dict(type='BN'),
        'bbox_head.in_channels': channels,
        'bbox_head.feat_channels': channels,
        'bbox_head.norm_cfg': dict(type='BN'),
    }
    return 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', changes


def detr(channels):
    attention = dict(embed_dims=channels, num_heads=4)
    ffn = {'embed_dims': channels, 'feedforward_channels': 32}
    changes = {
        'backbone.depth': 18,
        'backbone.base_channels': 8,
        'backbone.init_cfg': None,
        'neck.in_channels': [64],
        'neck.out_channels': channels,
        'num_queries': 20,
        'encoder.num_layers': 1,
        'decoder.num_layers': 2,
        'encoder.layer_cfg.self_attn_cfg': attention,
        'encoder.layer_cfg.ffn_cfg.embed_dims': ffn['embed_dims'],
        'encoder.layer_cfg.ffn_cfg.feedforward_channels': ffn['feedforward_channels'],
        'decoder.layer_cfg.self_attn_cfg': attention,
        'decoder.layer_cfg.cross_attn_cfg': attention,
        'decoder.layer_cfg.ffn_cfg.embed_dims': ffn['embed_dims'],
        'decoder.layer_cfg.ffn_cfg.feedforward_channels': ffn['feedforward_channels'],
        'positional_encoding.num_feats': channels // 2,
        'bbox_head.embed_dims': channels,
    }
    return 'detr/detr_r50_8xb2-150e_coco.py', changes


def dino(_):
    channels = 256  # mmdet writes it into the encoding of a box

    def attention(levels):
        return dict(embed_dims=channels, num_heads=4, num_levels=levels)

    ffn = 'layer_cfg.ffn_cfg'
    changes = {
        'backbone.depth': 18,
        'backbone.base_channels': 8,
        'backbone.init_cfg': None,
        'backbone.norm_cfg.requires_grad': True,
        'backbone.frozen_stages': -1,
        'neck.in_channels': [16, 32, 64],
        'neck.out_channels': channels,
        'neck.norm_cfg.num_groups': 4,
        'num_queries': 20,
        'encoder.num_layers': 1,
        'decoder.num_layers': 2,
        'encoder.layer_cfg.self_attn_cfg': attention(4),
        'decoder.layer_cfg.self_attn_cfg': dict(embed_dims=channels, num_heads=4),
        'decoder.layer_cfg.cross_attn_cfg': attention(4),
        f'encoder.{ffn}.embed_dims': channels,
        f'encoder.{ffn}.feedforward_channels': 32,
        f'decoder.{ffn}.embed_dims': channels,
        f'decoder.{ffn}.feedforward_channels': 32,
        'positional_encoding.num_feats': channels // 2,
        'bbox_head.embed_dims': channels,
        'dn_cfg.group_cfg.num_dn_queries': 10,
    }
    return 'dino/dino-4scale_r50_8xb2-12e_coco.py', changes


FAMILIES = {
    'two-stage': (two_stage, 'rpn_head.rpn_cls', 5),
    'one-stage': (one_stage, 'bbox_head.retina_cls', 5),
    'anchor-free': (anchor_free, 'bbox_head.conv_cls', 5),
    'yolox': (yolox, 'bbox_head.multi_level_conv_cls.0', 1),
    'rtmdet': (rtmdet, 'bbox_head.rtm_cls.0', 1),
    'detr': (detr, 'decoder.layers.1', 1),
    'dino': (dino, 'decoder.layers.1', 1),
}


def build(family, kind, terms):
    use_scope('mmdet')
    models = []
    for channels in (16, 24):
        path, changes = family(channels)
        models.append(override(get_config(f'mmdet::{path}').model, changes))
    student, teacher = models
    cfg = dict(type=f'mmsokd.{kind}', student=student, teacher=teacher, terms=copy.deepcopy(terms), probe_size=128)
    model = MODELS.build(ConfigDict(cfg)).train()
    for network in (model.student, model.teacher):
        if hasattr(network, 'level_embed'):  # until init_weights mmdet leaves it to whatever the memory holds
            torch.nn.init.normal_(network.level_embed)
    return model


@pytest.mark.parametrize('name', FAMILIES)
def test_steps_with_sokd_on_the_neck_and_a_hint_in_the_head(name):
    family, head, levels = FAMILIES[name]
    terms = dict(loss_neck=NECK, loss_head=dict(NECK, tap=head, refine=False, areas=False))
    model = build(family, 'SoKDDistiller', terms)
    assert len(model.terms['loss_head'].pairs) == levels
    losses = model(**model.data_preprocessor(raw_batch(size=128), True), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert log['distill.loss_neck'] > 0
    assert log['distill.loss_head'] > 0
    assert log['sokd.loss_area'] > 0
    assert total.isfinite()
    forgotten = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not forgotten
    before = [p.clone() for p in model.student.parameters()]
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert any(not torch.equal(p, old) for p, old in zip(model.student.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ('name', 'tap'),
    [
        ('detr', 'decoder'),
        ('two-stage', 'roi_head.bbox_head.shared_fcs.1'),
        ('two-stage', 'roi_head.bbox_head.fc_cls'),
        ('two-stage', 'roi_head.bbox_roi_extractor'),
    ],
)
def test_rows_that_are_no_pictures_are_refused(name, tap):
    with pytest.raises(
        ValueError, match=f"student: terms.loss_a.tap: tap '{tap}': expected the batch as first dimension"
    ):
        build(FAMILIES[name][0], 'Distiller', dict(loss_a=dict(NECK, tap=tap)))


def test_a_convolution_is_not_for_queries():
    term = dict(NECK, tap='decoder.layers.1', adapter=dict(type='mmsokd.ConvAdapter'))
    message = r"loss_a\.adapter: expected none, or .*LinearAdapter'\), for tokens of 16 channels and size \(20,\)"
    with pytest.raises(ValueError, match=f'{message} .*found ConvAdapter'):
        build(detr, 'Distiller', dict(loss_a=term))
    with pytest.raises(ValueError, match=r'equal channels .*, found 16 and 24 .*LinearAdapter'):
        build(detr, 'Distiller', dict(loss_a=dict(term, adapter=None)))


@pytest.mark.parametrize('loss', ['KDLoss', 'RKDLoss'])
def test_a_loss_of_pictures_takes_no_queries(loss):
    term = dict(type=f'mmsokd.{loss}', tap='decoder.layers.1')
    with pytest.raises(ValueError, match=r'loss_a: expected vectors \(N, C\) or maps .*, found tokens of 16 channels'):
        build(detr, 'Distiller', dict(loss_a=term))


def test_the_denoising_queries_are_not_compared():
    model = build(dino, 'Distiller', dict(loss_a=dict(NECK, tap='decoder.layers.1')))
    data = model.data_preprocessor(raw_batch(size=128), True)
    with model._tap as tapped:
        model.student(**data, mode='loss')
    (student,) = tapped['decoder.layers.1']
    teacher = model._teachers['teacher'].features(**data)['decoder.layers.1']
    assert student.shape[1] > teacher[0].shape[1] == 20
    (chosen,), _ = model.terms['loss_a'].select([student], teacher, (128, 128))
    assert torch.equal(chosen, student[:, student.shape[1] - 20 :])  # mmdet's DINO: cat([denoising, matching], 1)


def test_a_map_is_not_compared_with_queries():
    adapter = dict(type='mmsokd.ConvAdapter', resize='bilinear')
    term = dict(NECK, tap='decoder.layers.1', adapter=adapter)
    del term['tap']
    with pytest.raises(
        ValueError, match=r'loss_a: expected .*of one kind, found a map of 16 .* tokens of 24 .*\(20,\)'
    ):
        build(detr, 'Distiller', dict(loss_a=dict(term, student_tap='neck', teacher_tap='decoder.layers.1')))
