"""One vector a picture."""

from torch import Tensor


def pooled(feat: Tensor) -> Tensor:
    """A vector a picture (N, C): a map (N, C, H, W) by its mean, a vector as it is.

    Raises:
        ValueError: ``feat`` is neither.
    """
    if feat.dim() not in (2, 4):
        raise ValueError(
            f'expected a vector (N, C) or a map (N, C, H, W) a picture, found {tuple(feat.shape)}; tap another layer'
        )
    return feat.flatten(2).mean(2) if feat.dim() == 4 else feat
