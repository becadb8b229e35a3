"""A loss that looks at annotations is tried when the model is built, on those that the student's task has."""

import pytest
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from mmsokd.distillers.rehearsal import blank_samples
from mmsokd.registry import MODELS
from tests.builders import classifier, distiller, raw_batch, raw_cls_batch, raw_seg_batch, retinanet, segmentor

NO_BOXES = r"data samples with gt_instances\.bboxes \(n, 4\), found \['gt_{}'\]; this loss needs ground-truth boxes"
NO_MAP = (
    r"expected 'gt_sem_seg' in each data sample for dense logits \(N, K, H, W\), found \['gt_instances'\]; .*KDLoss"
)
NO_CLASS = r"expected 'gt_label' in each data sample for class logits \(N, K\), found \['gt_sem_seg'\]"


def build(network, **term):
    return distiller('Distiller', student=network(), teacher=network(), probe_size=64, terms=dict(loss_kd=term))


@pytest.mark.parametrize(
    ('network', 'term', 'message'),
    [
        (segmentor, dict(type='mmsokd.FGDLoss', tap='backbone.layer3'), NO_BOXES.format('sem_seg')),
        (classifier, dict(type='mmsokd.FGDLoss', tap='backbone.layer3'), NO_BOXES.format('label')),
        (retinanet, dict(type='mmsokd.DKDLoss', tap='bbox_head.retina_cls'), NO_MAP),
        (retinanet, dict(type='mmsokd.DRKDLoss', tap='bbox_head.retina_cls'), NO_MAP),
        (segmentor, dict(type='mmsokd.LDLoss', tap='decode_head.conv_seg', adapter=None), 'GFL head'),
    ],
)
def test_another_tasks_loss_is_told(network, term, message):
    with pytest.raises(ValueError, match=rf'^terms\.loss_kd: .*{message}'):
        build(network, **term)


@pytest.mark.parametrize(
    ('network', 'make'), [(retinanet, raw_batch), (segmentor, raw_seg_batch), (classifier, raw_cls_batch)]
)
def test_blank_samples_have_what_a_batchs_have(network, make):
    """What is refused for want of an annotation would have wanted it in the first step, too."""
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


def test_a_model_of_no_known_library_is_left_to_its_first_step():
    assert blank_samples(OwnModel(4), 32) is None
    model = build(lambda: dict(type=OwnModel, width=4), type='mmsokd.FGDLoss', tap='body')
    assert len(model.terms['loss_kd'].losses) == 1
