"""The teacher sees each batch as its own preprocessor would have made it, or says when the distiller is built that it
cannot."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config

from mmsokd.distillers.teacher import Teacher
from mmsokd.registry import MODELS
from tests.builders import IMAGENET, classifier, distiller, losses_of, raw_batch, raw_cls_batch, retinanet, use_scope
from tests.distillers.test_families import override, yolox

PLAIN = dict(type='DetDataPreprocessor', pad_value=114.0, pad_size_divisor=32)


def preprocessor(**kwargs):
    return dict(type='DetDataPreprocessor', **{**IMAGENET, **kwargs})


def uneven_batch():
    batch = raw_batch(size=64)
    batch['inputs'][1] = batch['inputs'][1][:, :40, :56]  # the rest is padding
    batch['data_samples'][1].set_metainfo(dict(img_shape=(40, 56)))
    return batch


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        (preprocessor(pad_value=114.0), preprocessor()),  # nothing but the padding differs
        (preprocessor(), preprocessor(pad_value=-1.0)),
        (PLAIN, preprocessor()),  # YOLOX below a detector that normalises
        (preprocessor(), PLAIN),
        (dict(PLAIN, bgr_to_rgb=True, pad_value=7), PLAIN),
    ],
)
def test_padding_is_the_teachers_own(student, teacher):
    teacher = Teacher('teacher', retinanet(24, data_preprocessor=teacher))
    student = MODELS.build(retinanet(16, data_preprocessor=student))
    teacher.match_normalization(student.data_preprocessor)
    batch = uneven_batch()
    ours = student.data_preprocessor(copy.deepcopy(batch), False)
    theirs = teacher.module.data_preprocessor(copy.deepcopy(batch), False)
    seen = teacher.prepare(ours['inputs'], ours['data_samples'])
    torch.testing.assert_close(seen, theirs['inputs'], rtol=1e-4, atol=1e-3)
    assert not torch.equal(ours['inputs'], theirs['inputs'])


def test_padding_costs_nothing_where_there_is_none():
    teacher = Teacher('teacher', retinanet(24))
    student = MODELS.build(retinanet(16, data_preprocessor=preprocessor(pad_value=114.0)))
    teacher.match_normalization(student.data_preprocessor)
    data = student.data_preprocessor(raw_batch(), False)
    assert teacher.prepare(**data) is data['inputs']


def assert_seen_as_its_own(batch):
    """A teacher of mmpretrain with another normalization sees the batch as its own preprocessor makes it."""
    other = dict(type='ClsDataPreprocessor', mean=[0.0] * 3, std=[50.0] * 3, to_rgb=False)
    teacher = Teacher('teacher', classifier(12, data_preprocessor=other))
    student = MODELS.build(classifier(8))
    teacher.match_normalization(student.data_preprocessor)
    ours = student.data_preprocessor(copy.deepcopy(batch), False)
    theirs = teacher.module.data_preprocessor(copy.deepcopy(batch), False)
    torch.testing.assert_close(teacher.prepare(**ours), theirs['inputs'], rtol=1e-4, atol=1e-3)


def test_a_shape_that_some_transform_left_behind_does_not_count():
    """mmpretrain's pictures fill their batch: after torchvision's crops img_shape is that of the file."""
    batch = raw_cls_batch()
    for sample, left in zip(batch['data_samples'], [(500, 375), (40, 40)], strict=True):
        sample.set_metainfo(dict(img_shape=left))
    assert_seen_as_its_own(batch)


def test_a_padded_list_of_pictures_tells_by_its_largest():
    """What pseudo_collate gives mmpretrain's preprocessor, which then pads without a divisor."""
    batch = raw_cls_batch()
    batch['inputs'] = [batch['inputs'][0], batch['inputs'][1][:, :40, :56]]
    for sample, picture in zip(batch['data_samples'], batch['inputs'], strict=True):
        sample.set_metainfo(dict(img_shape=tuple(picture.shape[1:])))
    assert_seen_as_its_own(batch)


def narrow_yolox(channels, **changes):
    use_scope('mmdet')
    path, narrow = yolox(channels)
    return override(get_config(f'mmdet::{path}').model, {**narrow, **changes})


def test_sides_that_the_teacher_cannot_take_are_refused():
    cfg = dict(
        student=ConfigDict(retinanet(16, data_preprocessor=preprocessor(pad_size_divisor=1))),
        teacher=narrow_yolox(24),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck')),
    )
    with pytest.raises(ValueError, match=r"teacher: .*multiples of 32.*, found 1 in the student's"):
        distiller('Distiller', **cfg)
    cfg['student'].data_preprocessor.pad_size_divisor = 64
    distiller('Distiller', **cfg)


def test_sides_that_the_teacher_can_take_are_its_padding_or_not():
    student = retinanet(16, data_preprocessor=preprocessor(pad_size_divisor=1))
    model = distiller('Distiller', student=student, teacher=retinanet(24)).train()
    assert losses_of(model, raw_batch(size=100))['distill.loss_hint'] > 0
