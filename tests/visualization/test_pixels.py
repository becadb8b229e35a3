"""Pictures come back from a batch as they were loaded, whatever a library calls its normalization."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import nn

from mmsokd.visualization import loads_rgb, pictures_of
from tests.builders import classifier, raw_batch, raw_cls_batch, raw_seg_batch, retinanet, segmentor


def unequal(batch):
    """The second picture a quarter smaller, so that there is padding."""
    batch['inputs'][1] = batch['inputs'][1][:, :48, :40].clone()
    sample = batch['data_samples'][1]
    sample.set_metainfo(dict(img_shape=(48, 40), ori_shape=(48, 40)))
    if 'gt_sem_seg' in sample:
        sample.gt_sem_seg = PixelData(data=sample.gt_sem_seg.data[:, :48, :40])
    return batch


@pytest.mark.parametrize(
    ('model', 'batch'),
    [(retinanet, raw_batch), (segmentor, raw_seg_batch), (classifier, raw_cls_batch)],
    ids=['mmdet', 'mmseg', 'mmpretrain'],
)
def test_pictures_are_what_the_loader_gave(model, batch):
    preprocessor = MODELS.build(model()['data_preprocessor'])
    batch = batch() if model is classifier else unequal(batch())
    expected = [image.permute(1, 2, 0).numpy()[..., ::-1] for image in batch['inputs']]  # loaded as BGR, shown as RGB
    data = preprocessor(copy.deepcopy(batch), True)
    assert data['inputs'].shape == (2, 3, 64, 64)
    found = pictures_of(data['inputs'], preprocessor, data['data_samples'])
    for picture, raw in zip(found, expected, strict=True):
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, raw)


def test_a_network_on_bgr_and_one_whose_pictures_are_loaded_as_rgb():
    raw = torch.randint(0, 256, (1, 3, 4, 6)).float()
    shown = raw[0].permute(1, 2, 0).numpy()
    keeps = nn.Identity()  # neither flips nor normalizes
    flips = SimpleNamespace(channel_conversion=True)
    np.testing.assert_array_equal(pictures_of(raw, keeps)[0], shown[..., ::-1])
    np.testing.assert_array_equal(pictures_of(raw, keeps, rgb=True)[0], shown)
    np.testing.assert_array_equal(pictures_of(raw, flips)[0], shown)


def test_grey_and_many_channels_and_what_a_transform_normalized():
    grey = torch.full((1, 1, 2, 2), 77.0)
    assert (pictures_of(grey, None)[0] == 77).all()
    assert pictures_of(torch.zeros(1, 5, 2, 2), None)[0].shape == (2, 2, 3)
    picture = pictures_of(torch.linspace(-2, 2, 12).view(1, 3, 2, 2), None)[0]
    assert (picture.min(), picture.max()) == (0, 255)


class LoadImageFromFile:
    """As a pipeline names it."""


class Flip:
    """Any other transform."""


@pytest.mark.parametrize(('transforms', 'rgb'), [([LoadImageFromFile(), Flip()], False), ([Flip()], True), ([], False)])
def test_what_reads_no_file_is_rgb(transforms, rgb):
    dataset = SimpleNamespace(pipeline=SimpleNamespace(transforms=transforms))
    assert loads_rgb(dataset) is rgb
    assert loads_rgb(SimpleNamespace(dataset=SimpleNamespace(datasets=[dataset]))) is rgb
