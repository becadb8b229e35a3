"""The second-order gradient of the policy, by DARTS's finite differences."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def unrolled_gradient(
    loss: Callable[[], Tensor],
    weights: Sequence[Tensor],
    chi: Sequence[Tensor],
    lr: float = 0.01,
    scale: float = 0.01,
    loss_scale: float = 1.0,
    outer: Callable[[], Tensor] | None = None,
) -> list[Tensor]:
    r"""Gradient for ``chi`` of a loss after one virtual SGD step of the weights (DARTS, arXiv:1806.09055, eq. 7-8).

    .. math:: \nabla_\chi L_o(w', \chi) - \eta \frac{\nabla_\chi L(w^+, \chi) - \nabla_\chi L(w^-, \chi)}{2 \epsilon}

    with :math:`w' = w - \eta \nabla_w L(w, \chi)`, :math:`v = \nabla_{w'} L_o(w', \chi)`, :math:`w^\pm = w \pm
    \epsilon v` and :math:`\epsilon = scale / \|v\|`. The first, direct term is left out in the authors' fork.

    Args:
        loss: recomputes L from the weights and chi as they stand; must be the same function at every call.
        weights: changed in place for the passes and put back exactly, also when ``loss`` raises.
        chi: leaves that require a gradient.
        lr: eta of the virtual step.
        scale: of epsilon.
        loss_scale: what the loss is multiplied by before each backward, and its gradients are divided by after it, so
            that gradients in half precision do not vanish (a GradScaler's scale).
        outer: recomputes :math:`L_o`, what the step is judged by; L by default.

    Returns: one gradient for each of ``chi``; NaN if a scaled gradient of the weights overflowed. Four calls of
    ``loss``, of which the second is ``outer``'s, if it is there.
    """
    weights, chi = list(weights), list(chi)
    with _restored(weights) as original:
        step, finite = _or_zero(_grad(loss(), weights, loss_scale))
        _set(weights, original, step, -lr)
        both = _grad((outer or loss)(), [*weights, *chi], loss_scale)
        (v, also_finite), direct = _or_zero(both[: len(weights)]), both[len(weights) :]
        norm = torch.stack([g.float().square().sum() for g in v]).sum().sqrt().clamp(min=1e-12)
        epsilon = scale / norm
        _set(weights, original, v, epsilon)
        plus = _grad(loss(), chi, loss_scale)
        _set(weights, original, v, -epsilon)
        minus = _grad(loss(), chi, loss_scale)
    if not (finite and also_finite):
        return [torch.full_like(x, torch.nan) for x in chi]
    return [d - lr * (p - m) / (2 * epsilon) for d, p, m in zip(direct, plus, minus, strict=True)]


def _or_zero(gradients: list[Tensor]) -> tuple[list[Tensor], bool]:
    """The gradients, or zeros if one of them is not finite; and whether they were.

    The passes that follow must be made all the same, and with weights that are numbers: the loss may talk to other
    ranks, whose gradients may be fine.
    """
    if torch.stack([g.isfinite().all() for g in gradients]).all():
        return gradients, True
    return [torch.zeros_like(g) for g in gradients], False


def _grad(value: Tensor, inputs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Gradients, zero where the value does not depend on an input."""
    found = torch.autograd.grad(value * scale, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g / scale for x, g in zip(inputs, found, strict=True)]


@torch.no_grad()
def _set(
    weights: Sequence[Tensor], original: Sequence[Tensor], direction: Sequence[Tensor], step: float | Tensor
) -> None:
    for weight, start, by in zip(weights, original, direction, strict=True):
        weight.copy_(start + step * by)


@contextmanager
def _restored(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    original = [weight.detach().clone() for weight in weights]
    try:
        yield original
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, original, strict=True):
                weight.copy_(value)
