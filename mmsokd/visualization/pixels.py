"""From the batch that a network saw back to pictures."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from mmsokd.distillers.teacher import Normalization


def pictures_of(
    inputs: Tensor, preprocessor: nn.Module | None, data_samples: list | None = None, rgb: bool = False
) -> list[np.ndarray]:
    """The pictures of a preprocessed batch, without their padding.

    Args:
        inputs: the batch (N, C, H, W); of one channel grey, of more than three the first three.
        preprocessor: what made it, to get the pixels back. Where it does not normalize and the numbers are no pixels of
            0 to 255, because some transform has normalized them, each picture is stretched to that range.
        data_samples: one a picture; they tell what is padding.
        rgb: whether the pictures were loaded as RGB, and not BGR (see :func:`loads_rgb`).

    Returns:
        RGB uint8 (h, w, 3).
    """
    norm = Normalization.of(preprocessor)
    images = inputs.detach().float().cpu() * norm.std + norm.mean
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    images = images if norm.flip != rgb else images.flip(1)
    sizes = norm.sizes(inputs, data_samples) or [tuple(inputs.shape[-2:])] * len(inputs)
    cut = (image[:, :h, :w].permute(1, 2, 0).numpy() for image, (h, w) in zip(images, sizes, strict=True))
    return [np.ascontiguousarray(_bytes(image)) for image in cut]


def _bytes(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    if low < -64 or high > 510 or 0 < max(-low, high) < 8:  # as TST tells pixels from other numbers
        image = 255 * (image - low) / max(high - low, 1e-6)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def loads_rgb(dataset: Any) -> bool:
    """Whether a data set hands out RGB: as mmpretrain's CIFAR does, from arrays; what is read from a file is BGR."""
    while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):  # wrapped, or concatenated
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    names = [type(transform).__name__ for transform in transforms]
    return bool(names) and not any(name.startswith('Load') and 'Image' in name for name in names)
