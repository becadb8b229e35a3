"""A transformer's tokens are a map to everything behind the taps."""

import pytest
import torch
from mmpretrain.structures import DataSample

from mmsokd.registry import MODELS
from mmsokd.taps import FeatureSpec, as_map
from tests.builders import classifier, use_scope

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=64,
    patch_size=8,
    out_type='cls_token',
)


def images(height=64, width=64):
    samples = [DataSample().set_gt_label(i % 5) for i in range(2)]
    return torch.randn(2, 3, height, width), samples


def distiller(**kwargs):
    use_scope('mmpretrain')
    cfg = dict(
        type='mmsokd.SoKDDistiller',
        student=classifier(8),
        teacher=classifier(backbone=VIT, neck=None, head=dict(type='VisionTransformerClsHead', in_channels=24)),
        terms=dict(
            loss_hint=dict(type='mmsokd.FitNetLoss', student_tap='backbone.layer2', teacher_tap='backbone.layers.1')
        ),
        probe_size=64,
    )
    cfg.update(kwargs)
    return MODELS.build(cfg)


def test_class_tokens_first_then_rows():
    tokens = torch.arange(7.0)[None, :, None].expand(1, 7, 2)  # one class token, then 2 x 3 cells
    found = as_map(tokens, FeatureSpec(2, (2, 2), 16, True, extra=1), (32, 48))
    assert found.shape == (1, 2, 2, 3)
    assert found[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match='expected the tokens of a grid of stride 16'):
        as_map(tokens, FeatureSpec(2, (2, 2), 16, True, extra=1), (32, 32))


def test_a_cnn_learns_from_a_transformer():
    model = distiller().train()
    (_, teacher) = model.terms['loss_hint'].specs[0]
    assert (teacher.channels, teacher.size, teacher.stride, teacher.extra) == (24, (8, 8), 8, 1)
    losses = model(*images(), mode='loss')
    assert losses['distill.loss_hint'] > 0
    assert losses['sokd.loss_area'] > 0
    model.parse_losses(losses)[0].backward()
    assert model.student.backbone.layer2[0].conv1.weight.grad.abs().sum() > 0


def test_a_transformer_learns_from_itself_in_another_width():
    student = dict(VIT, arch=dict(VIT['arch'], embed_dims=16))
    term = dict(type='mmsokd.FitNetLoss', tap='backbone.layers.1')
    model = distiller(
        student=classifier(backbone=student, neck=None, head=dict(type='VisionTransformerClsHead', in_channels=16)),
        terms=dict(loss_hint=term),
    ).train()
    assert model(*images(), mode='loss')['distill.loss_hint'] > 0
