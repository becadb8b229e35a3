"""Gradients of discrete choices: straight-through, relaxed draws, and the RELAX estimator (pure functions).

Randomness is always an argument, a tensor of uniforms, so that every draw can be replayed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PROBABILITY_MARGIN = 1e-6  # at 0 or 1 the logit is infinite


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Value of ``hard``, gradient of ``soft`` (Bengio et al., arXiv:1308.3432)."""
    return hard.detach() + (soft - soft.detach())


def reversed_gradient(value: Tensor, strength: float) -> Tensor:
    """``value``, with its gradient turned round: what comes behind it learns one thing, what lies before the opposite.

    The gradient reversal layer of Ganin and Lempitsky (arXiv:1409.7495).

    Args:
        value: any tensor.
        strength: the gradient is multiplied by minus this.
    """
    return straight_through(value, -strength * value)


def _open(u: Tensor) -> Tensor:
    """``u`` kept off 0 and 1, where the logarithms below are infinite."""
    limits = torch.finfo(u.dtype)
    return u.clamp(limits.tiny, 1 - limits.eps)


def _inside(probability: Tensor) -> Tensor:
    return probability.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel draws from uniforms in [0, 1]."""
    return -torch.log(-torch.log(_open(u)))


def logistic(u: Tensor) -> Tensor:
    """Standard logistic draws from uniforms in [0, 1]."""
    u = _open(u)
    return torch.log(u) - torch.log1p(-u)


def categorical_scores(logits: Tensor, u: Tensor) -> Tensor:
    """Perturbed log-probabilities ``z`` (..., K): their argmax is a draw, softmax(z / tau) is the relaxed draw.

    Jang et al., arXiv:1611.01144; Maddison et al., arXiv:1611.00712.

    Args:
        logits: (..., K), of any offset.
        u: uniforms (..., K).
    """
    return logits.log_softmax(-1) + gumbel(u)


def bernoulli_scores(probability: Tensor, u: Tensor) -> Tensor:
    """Perturbed logits ``z``: ``z > 0`` is a draw with that probability, sigmoid(z / tau) is the relaxed draw.

    Args:
        probability: in [0, 1], kept ``PROBABILITY_MARGIN`` off both ends.
        u: uniforms that broadcast with it.
    """
    return torch.logit(_inside(probability)) + logistic(u)


def conditional_categorical_scores(logits: Tensor, choice: Tensor, v: Tensor) -> Tensor:
    """``z~`` from p(z | argmax z = choice) (Grathwohl et al., arXiv:1711.00123, appendix B).

    Args:
        logits: (..., K).
        choice: the drawn category (...), int64.
        v: uniforms (..., K), independent of those that made the choice.
    """
    exponential = -torch.log(_open(v))
    top = exponential.gather(-1, choice[..., None])  # the maximum of z is a standard Gumbel, whatever won
    others = -torch.log(exponential * torch.exp(-logits.log_softmax(-1)) + top)
    return others.scatter(-1, choice[..., None], -torch.log(top))


def conditional_bernoulli_scores(probability: Tensor, gate: Tensor, v: Tensor) -> Tensor:
    """``z~`` from p(z | (z > 0) = gate) (Grathwohl et al., arXiv:1711.00123, appendix B).

    Args:
        probability: in [0, 1].
        gate: the drawn gates, 0 or 1, same shape.
        v: uniforms of the same shape, independent of those that made the draw.
    """
    p = _inside(probability)
    return torch.logit(p) + logistic(torch.where(gate > 0, 1 - p + v * p, v * (1 - p)))


def relax_gradient(
    value: Tensor,
    log_prob: Tensor,
    control: Callable[[Tensor], Tensor],
    scores: Tensor,
    conditional: Tensor,
    parameters: Sequence[Tensor],
    control_parameters: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    r"""One RELAX sample of the gradient of E[f(b)] (Grathwohl et al., ICLR 2018, arXiv:1711.00123, eq. 8).

    .. math:: g = (f(b) - c(\tilde z)) \nabla \log p(b) + \nabla c(z) - \nabla c(\tilde z)

    It is unbiased whatever the control variate ``c`` is, so ``c`` is trained to make ``|g|^2`` small, which has the
    same gradient as the trace of the estimator's variance.

    Args:
        value: f(b), a scalar without graph.
        log_prob: log p(b), a scalar with a graph to ``parameters``.
        control: c, from scores to a scalar, with a graph to ``control_parameters``.
        scores: z, with a graph to ``parameters``.
        conditional: z~, drawn from p(z | b), with a graph to ``parameters``.
        parameters: of the distribution.
        control_parameters: of the control variate.

    Returns:
        The gradient for ``parameters``, and that of ``|g|^2`` for ``control_parameters``; neither has a graph.
    """
    parameters, control_parameters = list(parameters), list(control_parameters)
    given = control(conditional)
    score = torch.autograd.grad(log_prob, parameters, retain_graph=True)
    correction = torch.autograd.grad(control(scores) - given, parameters, create_graph=True)
    estimate = [(value - given) * s + c for s, c in zip(score, correction, strict=True)]
    square = torch.stack([g.square().sum() for g in estimate]).sum()
    variance = torch.autograd.grad(square, control_parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(variance, control_parameters, strict=True)]
    return [g.detach() for g in estimate], filled
