"""What counts: the positions of a loss, and the predictions of a batch."""

from torch import Tensor


def mean_over_positions(value: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean of ``value``, over the weighted positions where a weight is given.

    Args:
        value: (N, C, H, W), or any shape without ``weight``.
        weight: (N, 1, H, W), >= 0. Where it is zero everywhere the result is zero.
    """
    if weight is None:
        return value.mean()
    weight = weight.to(value.dtype)
    total = weight.sum() * value.shape[1]
    return (value * weight).sum() / (total + (total == 0))


def effective(weight: Tensor) -> Tensor:
    """As how large a part of the predictions their weights count: 1 where all are equal, 1/n where one has it all."""
    return weight.sum() ** 2 / (weight.numel() * weight.square().sum())
