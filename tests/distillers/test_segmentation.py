"""The same distiller around an mmseg student: its features, its head's features and its dense logits."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmsokd.registry import MODELS
from tests.builders import raw_seg_batch as raw_batch
from tests.builders import segmentor, use_scope

FITNET = dict(type='mmsokd.FitNetLoss', tap='backbone.layer4')


def distiller(kind='SoKDDistiller', **kwargs):
    use_scope('mmseg')
    cfg = dict(
        type=f'mmsokd.{kind}',
        student=segmentor(8),
        teacher=segmentor(12, channels=20),
        terms=dict(loss_hint=FITNET),
        probe_size=64,
    )
    cfg.update(copy.deepcopy(kwargs))
    return MODELS.build(cfg)


@pytest.mark.parametrize('tap', ['backbone.layer4', 'backbone', 'decode_head.bottleneck'])
def test_feature_taps_with_sokd(tap):
    model = distiller(terms=dict(loss_hint=dict(FITNET, tap=tap))).train()
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    log = model.train_step(raw_batch(), optim_wrapper)
    assert log['distill.loss_hint'] > 0
    assert log['sokd.loss_area'] > 0
    assert log['decode.loss_ce'] > 0


AUXILIARY = dict(
    type='FCNHead',
    in_channels=32,
    in_index=2,
    channels=12,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0,
    num_classes=4,
    norm_cfg=dict(type='BN'),
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
)


@pytest.mark.parametrize(
    ('heads', 'tap'),
    [(AUXILIARY, 'auxiliary_head.conv_seg'), ([AUXILIARY, AUXILIARY], ['auxiliary_head.1.convs', 'backbone.layer1'])],
)
def test_auxiliary_heads_can_be_tapped(heads, tap):
    terms = dict(
        loss_main=dict(FITNET, tap='decode_head.conv_seg'), loss_aux=dict(FITNET, tap=tap, refine=False, areas=False)
    )
    student, teacher = segmentor(8, auxiliary_head=heads), segmentor(8, auxiliary_head=heads)
    model = distiller('Distiller', student=student, teacher=teacher, terms=terms).train()
    log = model.train_step(raw_batch(), OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)))
    assert log['distill.loss_aux'] > 0
    assert log['distill.loss_main'] > 0


def test_dense_logits_follow_the_refined_layer():
    terms = dict(loss_logits=dict(FITNET, tap='decode_head.conv_seg', areas=False))
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer4')
    model = distiller(terms=terms, refine=refine, areas=None).train()
    images = torch.randn(1, 3, 64, 64)
    teacher = model._teachers['teacher']
    plain = teacher.features(images, None)['decode_head.conv_seg'][0]
    policy = model.refine.necks['shared'].policy
    policy.beta.fill_(1.0)
    refined = teacher.features(images, None, {'backbone.layer4': model.refine.begin(images).replace})
    assert not torch.equal(plain, refined['decode_head.conv_seg'][0])
    assert (
        model.train_step(raw_batch(), OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)))['distill.loss_logits']
        > 0
    )


def test_predicts_as_the_student():
    model = distiller().eval()
    data = model.data_preprocessor(raw_batch(), False)
    ours, plain = model(**copy.deepcopy(data), mode='predict'), model.student(**copy.deepcopy(data), mode='predict')
    assert torch.equal(ours[0].seg_logits.data, plain[0].seg_logits.data)


def test_top_level_preprocessor_reaches_the_student():
    student = segmentor(8)
    preprocessor = student.pop('data_preprocessor')
    model = distiller(student=student, data_preprocessor=preprocessor)
    assert type(model.student.data_preprocessor).__name__ == 'SegDataPreProcessor'
    assert model.data_preprocessor is model.student.data_preprocessor


def test_what_runs_after_the_refined_layer_need_not_follow_it():
    """The auxiliary head runs last and reads the third stage, which comes before the refined fourth."""
    student, teacher = segmentor(8), segmentor(12, channels=20)
    for model in (student, teacher):
        model['auxiliary_head'] = dict(
            type='FCNHead', in_index=2, in_channels=model['backbone']['base_channels'] * 4, channels=4, num_classes=4
        )
    refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer4')
    logits = dict(type='mmsokd.KDLoss', tap='auxiliary_head.conv_seg')
    with pytest.raises(
        ValueError, match=r"refine\.at: expected a term that taps the teacher at or behind 'backbone\.layer4'"
    ):
        distiller(student=student, teacher=teacher, terms=dict(loss_kd=logits), refine=refine, areas=None)
    both = dict(logits, tap=['auxiliary_head.conv_seg', 'decode_head.conv_seg'])
    model = distiller(student=student, teacher=teacher, terms=dict(loss_kd=both), refine=refine, areas=None)
    assert model.refine.followers == {'loss_kd'}  # one of the two is refined, the other as it was
