"""Detected areas on the input pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, nn

from mmsokd.areas import Detection
from mmsokd.distillers.teacher import Normalization

# BGR, one colour a pyramid level, from fine to coarse
_COLOURS = [(80, 220, 80), (80, 220, 255), (60, 150, 255), (60, 60, 240), (220, 80, 220)]


def draw_areas(inputs: Tensor, preprocessor: nn.Module, levels: Sequence[Detection]) -> list[np.ndarray]:
    """One picture a sample: the input with each level's boxes in that level's colour, beside the mean of the
    levels' stretched heatmaps.

    Args:
        inputs: the preprocessed batch (N, 3, H, W).
        preprocessor: what made it, to get the pixels back.
        levels: level by level, the heatmap (N, K, h, w), the boxes (N, k, 4) in cells, and their scores (N, k).

    Returns:
        BGR images uint8 (H', 2 W', 3), enlarged to at least 320 pixels a side.
    """
    return [_draw(image, levels, i) for i, image in enumerate(_pixels(inputs, preprocessor))]


def _draw(image: np.ndarray, levels: Sequence[Detection], sample: int) -> np.ndarray:
    zoom = max(1, -(-320 // min(image.shape[:2])))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    height, width = image.shape[:2]
    boxed = image.copy()
    heat = np.zeros((height, width), np.float32)
    for i, level in enumerate(levels):
        rows, columns = level.heat.shape[-2:]
        for box, score in zip(level.boxes[sample].tolist(), level.scores[sample].tolist(), strict=True):
            if score <= 0:
                continue
            x1, y1, x2, y2 = (round(v * s) for v, s in zip(box, (width / columns, height / rows) * 2, strict=True))
            cv2.rectangle(boxed, (x1, y1), (x2 - 1, y2 - 1), _COLOURS[i % len(_COLOURS)], 1)
        one = level.heat[sample].amax(0).float().cpu().numpy()
        heat += cv2.resize(_stretch(one), (width, height), interpolation=cv2.INTER_LINEAR)
    scaled = np.uint8(255 * _stretch(heat))
    overlay = cv2.addWeighted(image, 0.5, cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), 0.5, 0)
    return np.hstack([boxed, overlay])


def _stretch(heat: np.ndarray) -> np.ndarray:
    """To [0, 1]: every level says where it is hot, however hot that is."""
    return (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-6)


def _pixels(inputs: Tensor, preprocessor: nn.Module) -> np.ndarray:
    """The batch as BGR uint8 (N, H, W, 3)."""
    norm = Normalization.of(preprocessor)
    images = inputs.detach().float().cpu() * norm.std + norm.mean
    images = images.flip(1) if norm.flip else images
    return np.ascontiguousarray(images.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write a PNG, making its folder.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')
