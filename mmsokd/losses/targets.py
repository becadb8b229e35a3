"""What the batch's data samples say of each prediction: its true class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.losses.boxes import labels_in_cells


def targets(samples: Sequence[Any] | None, logits: Tensor, ignore_index: int = 255) -> Tensor:
    """The true class of each prediction, from samples of mmpretrain or mmseg.

    Args:
        samples: one a picture.
        logits: (N, K) or (N, K, H, W).
        ignore_index: value of ``gt_sem_seg`` that is left out.

    Returns: (N) or (N, H, W), int64, on the logits' device; -1 where there is none.

    Raises:
        ValueError: the samples do not tell the classes.
    """
    found = segments(samples, logits.shape[-2:], ignore_index) if logits.dim() == 4 else classes(samples)
    return found.to(logits.device, non_blocking=True)


def anchor_targets(
    samples: Sequence[Any] | None, logits: Tensor, num_classes: int | None, ignore_index: int = 255
) -> Tensor:
    """As :func:`targets`; or, of a detector's dense head, the class of the smallest box that touches a cell [ours].

    The detector's assigner is not asked: it need not call these anchors positive.

    Args:
        samples, ignore_index: as :func:`targets` takes them; a detector's are told by ``gt_instances``.
        logits: (N, K), or (N, K, H, W), a detector's (N, A K, H, W).
        num_classes: K, which a detector's channels do not tell.

    Returns: (N) or (N, H, W), int64; -1 where there is none.

    Raises:
        ValueError: the samples do not tell the classes, or they are a detector's without ``num_classes``.
    """
    if logits.dim() == 4 and samples and 'gt_instances' in samples[0]:  # perhaps with a class map
        if num_classes is not None:
            return labels_in_cells(samples, logits)
        if 'gt_sem_seg' not in samples[0]:
            raise ValueError(
                f"num_classes: expected the detector's number of classes, found none beside {logits.shape[1]} "
                'channels, which are anchors x classes'
            )
    return targets(samples, logits, ignore_index)


def classes(samples: Sequence[Any] | None) -> Tensor:
    """The class of each picture (N), int64, from samples of mmpretrain; under mixup that of the largest score [ours].

    Raises:
        ValueError: a sample has no ``gt_label``, or several.
    """
    labels = _read(samples, 'gt_label', 'class logits (N, K)')
    if any(label.numel() != 1 for label in labels):
        raise ValueError(
            f'expected one class a picture, found {[label.numel() for label in labels]}; for several take '
            "dict(type='mmsokd.KDLoss', activation='sigmoid')"
        )
    if 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples]).argmax(1)
    return torch.cat(labels)


def segments(samples: Sequence[Any] | None, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    """The class of each position (N, H, W), int64: its nearest pixel's, of mmseg's or mmdet's samples; -1 if ignored.

    Raises:
        ValueError: a sample has no ``gt_sem_seg``, or they are of several sizes.
    """
    found = _read(samples, 'gt_sem_seg', 'dense logits (N, K, H, W)')
    maps = [gt.sem_seg if 'sem_seg' in gt else gt.data for gt in found]  # mmdet's or mmseg's, (1, h, w)
    shapes = sorted({tuple(label.shape[-2:]) for label in maps})
    if len(shapes) > 1:
        raise ValueError(
            f'gt_sem_seg: expected one size in a batch, found {shapes[0]} and {shapes[-1]}; mmdet pads its maps by '
            'data_preprocessor.pad_seg=True'
        )
    target = F.interpolate(torch.stack(maps).float(), size, mode='nearest-exact')[:, 0].long()
    return target.masked_fill(target == ignore_index, -1)


def labelled_mean(value: Tensor, target: Tensor) -> Tensor:
    """The mean of ``value`` where ``target``, of its shape, is a class; zero if it is none anywhere."""
    counts = target >= 0
    return (value * counts).sum() / counts.sum().clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over the predictions that have a class: logits (N, K, ...), targets (N, ...) -> scalar."""
    return labelled_mean(F.cross_entropy(logits, target, ignore_index=-1, reduction='none'), target)


def _read(samples: Sequence[Any] | None, field: str, what: str) -> list[Any]:
    found = [sample.get(field) for sample in samples or []]
    if not found or any(value is None for value in found):
        found = sorted(samples[0].keys()) if samples else 'none'
        raise ValueError(
            f'expected {field!r} in each data sample for {what}, found {found}; without a true class for each '
            'prediction, as in detection, take KDLoss'
        )
    return found
