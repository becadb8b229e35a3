"""A loss that looks at annotations is tried when the model is built, on those that the student's task has."""

import pytest
import torch
from mmdet.models import RetinaNet
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

from mmsokd.distillers.rehearsal import blank_samples
from mmsokd.losses import CRDLoss, TermLoss, crd
from mmsokd.registry import MODELS
from tests.builders import (
    classifier,
    distiller,
    losses_of,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
)

NO_BOXES = r"data samples with gt_instances\.bboxes \(n, 4\), found \['gt_{}'\]; this loss needs ground-truth boxes"
NO_MAP = (
    r"expected 'gt_sem_seg' in each data sample for dense logits \(N, K, H, W\), found \['gt_instances'\]; .*KDLoss"
)


def build(network, **term):
    return distiller('Distiller', student=network(), teacher=network(), probe_size=64, terms=dict(loss_kd=term))


@pytest.mark.parametrize(
    ('network', 'term', 'message'),
    [
        (segmentor, dict(type='mmsokd.FGDLoss', tap='backbone.layer3'), NO_BOXES.format('sem_seg')),
        (classifier, dict(type='mmsokd.FGDLoss', tap='backbone.layer3'), NO_BOXES.format('label')),
        (retinanet, dict(type='mmsokd.DKDLoss', tap='bbox_head.retina_cls'), NO_MAP),
        (
            retinanet,
            dict(type='mmsokd.DRKDLoss', tap='bbox_head.retina_cls'),
            "num_classes: expected the detector's number",
        ),
    ],
)
def test_another_tasks_loss_is_told(network, term, message):
    with pytest.raises(ValueError, match=rf'^terms\.loss_kd: .*{message}'):
        build(network, **term)


@pytest.mark.parametrize(
    ('network', 'make'), [(retinanet, raw_batch), (segmentor, raw_seg_batch), (classifier, raw_cls_batch)]
)
def test_blank_samples_have_what_a_batchs_have(network, make):
    """And no losses of ours look for more, or they would be refused on these."""
    model = MODELS.build(network())
    data = model.data_preprocessor(make(), True)
    blank, real = blank_samples(model, 64)[0], data['data_samples'][0]
    assert set(blank.keys()) <= set(real.keys())
    assert {'batch_input_shape', 'pad_shape', 'img_shape'} & set(real.metainfo_keys()) <= set(blank.metainfo_keys())
    ours, theirs = shapes(blank), shapes(real)
    assert ours
    assert ours.items() <= theirs.items()


def shapes(sample):
    """Path -> the shape of each tensor in it, boxes and classes of any number."""
    found = {}
    for key, value in sample.items():
        for name, x in value.items() if isinstance(value, BaseDataElement) else [('', value)]:
            found[f'{key}.{name}'] = x.shape[1:]
    return found


class OwnModel(BaseModel):
    """Nobody knows what its annotations are."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.body(inputs)


class OwnDetector(RetinaNet):
    """Of a known library, but with labels of its own."""


class OwnLoss(TermLoss):
    """Reads what only a real batch has."""

    wants_samples = True

    def forward(self, student, teacher, samples):
        assert samples[0].gt_instances.masks is not None
        return ((student - teacher) ** 2).mean()


class OwnCRD(CRDLoss):
    def _indices(self, samples):
        return [sample.img_id for sample in samples]


@pytest.mark.parametrize(
    'term', [dict(type=OwnLoss, tap='neck'), dict(type=OwnCRD, tap='backbone.layer3', num_samples=9, nce_k=4)]
)
def test_a_loss_of_the_users_own_is_left_to_its_first_step(term):
    build(retinanet, **term)


def test_a_detector_with_a_class_map():
    """A class of the user's own, which nothing is tried on: its own class map counts."""

    def own():
        return dict(retinanet(), type=OwnDetector)

    model = build(own, type='mmsokd.DKDLoss', tap='bbox_head.retina_cls').train()
    batch = raw_batch()
    for sample in batch['data_samples']:
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, 64, 64, dtype=torch.long))
    assert losses_of(model, batch)['distill.loss_kd'] > 0
    term = dict(type='mmsokd.StudentFriendlyKDLoss', tap='bbox_head.retina_cls', num_classes=3)
    assert losses_of(build(retinanet, **term).train(), batch)['distill.loss_kd'] > 0  # which counts boxes


def test_a_panoptic_models_blanks_have_a_class_map():
    model = MODELS.build(retinanet())
    assert set(blank_samples(model, 64)[0].keys()) == {'gt_instances'}
    model.semantic_head = nn.Identity()
    assert set(blank_samples(model, 64)[0].keys()) == {'gt_instances', 'gt_sem_seg'}


def test_no_other_rank_is_asked(monkeypatch):
    """A distiller may be built on one alone, to be exported."""
    monkeypatch.setattr(crd, 'all_gather', None)
    build(classifier, type='mmsokd.CRDLoss', tap='backbone.layer3', num_samples=9, nce_k=4)


def test_a_model_of_no_known_library_is_left_to_its_first_step():
    assert blank_samples(OwnModel(4), 32) is None
    assert blank_samples(MODELS.build(dict(retinanet(), type=OwnDetector)), 64) is None
    model = build(lambda: dict(type=OwnModel, width=4), type='mmsokd.FGDLoss', tap='body')
    assert len(model.terms['loss_kd'].losses) == 1
