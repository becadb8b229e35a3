"""What a term is tried on when the model is built: noise for features, and blank annotations of the student's task."""

import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from mmsokd.taps import FeatureSpec

NUM = 2  # pictures


def noise(spec: FeatureSpec) -> Tensor:
    """A feature as the dry run saw it, of two pictures."""
    shape = (spec.channels, *spec.size) if len(spec.size) != 1 else (*spec.size, spec.channels)
    feat = torch.randn(NUM, *shape, device='cpu')
    return feat if spec.signed else feat.relu()


def blank_samples(model: nn.Module, size: int) -> list[BaseDataElement] | None:
    """Data samples of two pictures that have what training this model needs, all of class 0.

    mmdet's models get a box, and panoptic ones, in which something is named so, a class map; mmseg's a class map;
    mmpretrain's a class.

    Args:
        model: the student.
        size: side of the pictures.

    Returns: None for a model of another library, also if its class is derived from one of these: nobody knows what
    annotations it has.
    """
    library = type(model).__module__.partition('.')[0]
    classes = torch.zeros(1, size, size, dtype=torch.long, device='cpu')
    label = torch.zeros(1, dtype=torch.long, device='cpu')
    annotations = {}
    if library == 'mmdet':
        boxes = torch.tensor([[0.0, 0.0, size / 2, size / 2]], device='cpu')
        annotations['gt_instances'] = InstanceData(bboxes=boxes, labels=label)
        if any('semantic' in name or 'panoptic' in name for name, _ in model.named_modules()):
            annotations['gt_sem_seg'] = PixelData(sem_seg=classes)
    elif library == 'mmpretrain':
        annotations['gt_label'] = label
    elif library == 'mmseg':
        annotations['gt_sem_seg'] = PixelData(data=classes)
    else:
        return None
    meta = dict(batch_input_shape=(size, size), pad_shape=(size, size), img_shape=(size, size))
    return [BaseDataElement(metainfo=dict(meta, sample_idx=i), **annotations) for i in range(NUM)]
