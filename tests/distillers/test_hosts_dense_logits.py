"""Hosts on the dense logits of mmseg's and mmdet's heads."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsokd.registry import MODELS
from tests import builders

CLASSES = 4


def segmentor(base: int) -> dict:
    """A ResNet18 and a head of one conv, ``base`` channels wide."""
    scope = DefaultScope.get_current_instance()
    if scope is None or scope.scope_name != 'mmseg':
        init_default_scope('mmseg')
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), mean=[127.5] * 3, std=[127.5] * 3),
        backbone=dict(type='ResNet', depth=18, stem_channels=base, base_channels=base, strides=(1, 2, 1, 1)),
        decode_head=dict(
            type='FCNHead',
            in_channels=8 * base,
            in_index=3,
            channels=base,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.0,
            num_classes=CLASSES,
            norm_cfg=dict(type='BN'),
            align_corners=False,
        ),
        test_cfg=dict(mode='whole'),
    )


def segments(n: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(n)]
    samples = []
    for _ in range(n):
        label = (
            torch.randint(0, CLASSES, (1, 4, 4), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        )
        label[:, :, :5] = 255
        samples.append(SegDataSample(metainfo=dict(img_shape=(32, 32)), gt_sem_seg=PixelData(data=label)))
    return dict(inputs=images, data_samples=samples)


def distiller(term: dict, **kwargs):
    torch.manual_seed(0)
    cfg = dict(type='mmsokd.Distiller', terms=dict(loss_host=term), probe_size=32, **kwargs)
    model = MODELS.build(ConfigDict(dict(student=segmentor(8), teacher=segmentor(12), **cfg)))
    with torch.no_grad():
        model.teacher.decode_head.conv_seg.weight.mul_(10)  # by default the head is all but silent
    return model.train()


@pytest.mark.parametrize('loss', ['KDLoss', 'DKDLoss', 'DISTLoss'])
def test_loss_falls_on_segments(loss):
    model = distiller(dict(type=f'mmsokd.{loss}', tap='decode_head.conv_seg', loss_weight=20.0))
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.01))
    batch = segments()
    values = [model.train_step(batch, wrapper)['distill.loss_host'].item() for _ in range(20)]
    assert sum(values[-3:]) / 3 < 0.3 * values[0], values


def test_refinement_in_place_reaches_the_segments():
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    model = distiller(dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg'), refine=refine)
    policy = model.refine.necks['shared'].policy
    policy.beta.fill_(1.0)
    policy.magnitude.fill_(1.0)
    data = model.data_preprocessor(segments(), True)
    assert data['data_samples'][0].gt_sem_seg.data.shape == (1, 32, 32)
    teacher, tap = model._teachers['teacher'], 'decode_head.conv_seg'
    plain = teacher.features(data['inputs'], data['data_samples'])[tap][0]
    replace = {'backbone.layer3': model.refine.begin(data['inputs']).replace}
    refined = teacher.features(data['inputs'], data['data_samples'], replace)[tap][0]
    assert (plain - refined).abs().max() > 0.1 * plain.abs().max()


def test_detectors_scores_one_by_one():
    term = dict(type='mmsokd.KDLoss', tap='bbox_head.retina_cls', activation='sigmoid')
    model = builders.distiller('Distiller', terms=dict(loss_kd=dict(term, tau=1.0, loss_weight=10.0))).train()
    with torch.no_grad():
        model.teacher.bbox_head.retina_cls.weight.normal_(0, 0.1)
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.003))
    values = [builders.step(model, wrapper)['distill.loss_kd'].item() for _ in range(10)]
    assert values[-1] < 0.4 * values[0], values


def test_detectors_scores_have_no_class():
    model = builders.distiller('Distiller', terms=dict(loss_kd=dict(type='mmsokd.DKDLoss', tap='bbox_head.retina_cls')))
    with pytest.raises(ValueError, match=r"expected 'gt_sem_seg' .*found DetDataSample .*as in detection, take KDLoss"):
        builders.losses_of(model)
