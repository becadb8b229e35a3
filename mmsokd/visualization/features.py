"""Student, teacher and refined teacher side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmsokd.distillers.base import Compared
from mmsokd.visualization.canvas import picture_grid

_COLUMNS = ('input', 'student', 'student, adapted', 'teacher', 'teacher, refined', '|refined - adapted|')


class Projection:
    """Maps of C channels as colours: the first three principal components of the maps it was made of.

    What has one colour in two maps that are shown by one projection has one feature there, but for what the three
    components leave out.

    Args:
        feat: (C, H, W).
    """

    def __init__(self, feat: Tensor) -> None:
        cells = feat.double().flatten(1).T  # (H W, C)
        self._mean = cells.mean(0)
        _, _, v = torch.linalg.svd(cells - self._mean, full_matrices=False)
        self._axes = torch.nn.functional.pad(v[:3].T, (0, 3 - min(3, len(v))))
        seen = (cells - self._mean) @ self._axes
        self._low, self._high = (seen.quantile(q, dim=0) for q in (0.01, 0.99))

    def __call__(self, feat: Tensor) -> np.ndarray:
        """(C, H, W) as RGB (H, W, 3) in [0, 1]."""
        seen = (feat.double().flatten(1).T - self._mean) @ self._axes
        scaled = (seen - self._low) / (self._high - self._low).clamp(min=1e-9)
        return scaled.clamp(0, 1).unflatten(0, feat.shape[1:]).float().numpy()


def features_figure(
    picture: np.ndarray, compared: Compared, strides: Sequence[tuple[int, int]], sample: int, title: str = ''
) -> Figure:
    """One term's features of one picture, a row a level.

    Teacher, refined teacher and adapted student are shown by one projection, the teacher's; the student as it was
    tapped by its own, since its channels are others. The last column is how far adapted student and refined teacher are
    apart, the root mean square over the channels.

    Args:
        picture: RGB uint8 (h, w, 3), without padding.
        compared: the features of its batch.
        strides: of the student's levels and of the teacher's, pixels a cell; cells in the padding are cut off.
        sample: which of the batch it is.
        title: of the figure.
    """
    rows, titles = [], []
    for *feats, (own_stride, stride) in zip(*compared, strides, strict=True):
        own, adapted, teacher, refined = (
            _cut(feat[sample], picture.shape[:2], by)
            for feat, by in zip(feats, (own_stride, stride, stride, stride), strict=True)
        )
        shared = Projection(teacher)
        distance = (refined - adapted).square().mean(0).sqrt().numpy()
        rows.append([picture, Projection(own)(own), shared(adapted), shared(teacher), shared(refined), distance])
        titles.append([f'{_COLUMNS[0]} (stride {stride})', *_COLUMNS[1:]])
    figure, axes = picture_grid(rows, titles, title)
    for row in axes:
        image = row[-1].images[0]
        image.set_cmap('inferno')
        figure.colorbar(image, ax=row[-1], fraction=0.046, pad=0.02)
    return figure


def _cut(feat: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """(C, H, W) on the host, without the cells that lie in the padding of a picture of ``size``."""
    rows, columns = (-(-side // stride) for side in size)
    return feat[:, :rows, :columns].detach().float().cpu()
