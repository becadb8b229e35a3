"""RELAX's control variate: a small network on the host."""

import torch
from torch import Tensor, nn


class ControlVariate(nn.Module):
    """Scores of a draw, 36 * 3 numbers -> 100 -> tanh -> 1 [authors' fork].

    Like the policy it is optimised beside the model, so its weights are no parameters of it.
    """

    def __init__(self, inputs: int, width: int = 100) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w1 = torch.randn(width, inputs, generator=generator) / inputs**0.5
        self.b1 = torch.zeros(width)
        self.w2 = torch.randn(width, generator=generator) / width**0.5
        self.b2 = torch.zeros(())

    def tensors(self) -> dict[str, Tensor]:
        """The live weights, to be optimised in place."""
        return dict(w1=self.w1, b1=self.b1, w2=self.w2, b2=self.b2)

    @staticmethod
    def apply_with(weights: dict[str, Tensor], scores: Tensor) -> Tensor:
        """The value for scores (inputs,) under given weights: a scalar."""
        hidden = torch.tanh(weights['w1'] @ scores + weights['b1'])
        return weights['w2'] @ hidden + weights['b2']

    def get_extra_state(self) -> Tensor:
        """Everything as one tensor (see :class:`~mmsokd.augment.policy.Policy`)."""
        return torch.cat([value.flatten() for value in self.tensors().values()])

    def set_extra_state(self, state: Tensor) -> None:
        """Copy into the live weights."""
        sizes = [value.numel() for value in self.tensors().values()]
        for own, value in zip(self.tensors().values(), state.cpu().split(sizes), strict=True):
            own.copy_(value.view_as(own))
