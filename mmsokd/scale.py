"""How loud a feature is: to divide an error by, so that a weight need not know it (pure functions)."""

import torch
from torch import Tensor

_SILENT = 1e-4  # a root mean square of 0.01; trained features are around 1


@torch.no_grad()
def power_of(teacher: Tensor) -> Tensor:
    """The mean square of a feature of any shape, as a constant: nobody shall make it louder to be closer to it.

    1 for one that is as good as silent, of which a relative error would be without bound.
    """
    power = teacher.square().mean()
    return torch.where(power > _SILENT, power, 1.0)
