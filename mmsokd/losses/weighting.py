"""What counts: the positions of a loss, and the predictions of a batch."""

from torch import Tensor
from torch.nn import functional as F


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
    # The channels first: what is then weighed is a single map.
    return (value.sum(1, keepdim=True) * weight).sum() / (total + (total == 0))


def mean_squared_error(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """The same of ``(student - teacher)^2``.

    By PyTorch's own function, whose backward is one pass and keeps the two features, which are there anyway, and not
    their difference.
    """
    if weight is None:
        return F.mse_loss(student, teacher)
    return mean_over_positions(F.mse_loss(student, teacher, reduction='none'), weight)


def mean_over_predictions(value: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of ``value``, with ``weight`` >= 0 of its shape; zero where all weights are."""
    total = weight.sum()
    return (value * (weight / (total + (total == 0)))).sum()


def effective(weight: Tensor) -> Tensor:
    """As how large a part of the predictions their weights count: 1 where all are equal, 1/n where one has it all, 0
    where none counts.
    """
    squares = weight.square().sum()
    return weight.sum() ** 2 / (weight.numel() * (squares + (squares == 0)))
