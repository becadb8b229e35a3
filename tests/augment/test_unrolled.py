import math

import pytest
import torch

from mmsokd.augment import unrolled_gradient


def problem():
    """A tiny float64 net whose targets and weight decay are what chi says; one weight is never used."""
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    weights = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((4, 3), (2, 4), (5,))]
    chi = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((2,), ())]

    def loss(w, c):
        out = torch.tanh(x @ w[0].T) @ w[1].T
        return ((out - y * c[0]) ** 2).mean() + c[1].exp() * (w[0] ** 2).mean() + (c[0] ** 3).sum()

    return loss, weights, chi


@pytest.mark.parametrize('lr', [0.0, 0.01, 0.3])
def test_against_the_explicit_second_order(lr):
    loss, weights, chi = problem()
    used = weights[:2]
    steps = torch.autograd.grad(loss(used, chi), used, create_graph=True)
    expected = torch.autograd.grad(loss([w - lr * g for w, g in zip(used, steps, strict=True)], chi), chi)
    found = unrolled_gradient(lambda: loss(weights, chi), weights, chi, lr)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert not ours.requires_grad


def test_the_virtual_step_matters():
    loss, weights, chi = problem()
    now, later = (unrolled_gradient(lambda: loss(weights, chi), weights, chi, lr) for lr in (0.0, 0.3))
    assert (now[0] - later[0]).abs().max() > 1e-2


@pytest.mark.parametrize('fails_at', [None, 1, 2, 3, 4])
def test_weights_come_back_bit_by_bit(fails_at):
    loss, weights, chi = problem()
    before, calls = [w.detach().clone() for w in weights], []

    def counted():
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError('boom')
        return loss(weights, chi)

    if fails_at:
        with pytest.raises(RuntimeError, match='boom'):
            unrolled_gradient(counted, weights, chi)
    else:
        unrolled_gradient(counted, weights, chi)
        assert len(calls) == 4
    for weight, value in zip(weights, before, strict=True):
        assert torch.equal(weight, value)
        assert weight.grad is None


def test_scaled_loss_saves_what_half_precision_loses():
    chi, weights = [torch.tensor([2.0]).requires_grad_()], [torch.tensor([1.5]).requires_grad_()]
    calls = []

    def loss():  # 1e-9 * chi * w^2, with a backward pass in float16
        calls.append(bool(weights[0].isfinite()))
        return (chi[0] * weights[0] ** 2).half().float().sum() * 1e-9

    def gradient(scale):
        return unrolled_gradient(loss, weights, chi, lr=0.01, loss_scale=scale)[0].item()

    assert gradient(1.0) == 0.0
    assert gradient(2.0**16) == pytest.approx(2.25e-9, rel=1e-2)
    calls.clear()
    assert math.isnan(gradient(1e15))  # overflows, and goes on: other ranks may wait inside the loss
    assert calls == [True] * 4
    assert weights[0].item() == 1.5


def test_an_overflow_after_the_virtual_step():
    chi, weights = [torch.tensor([1.0]).requires_grad_()], [torch.tensor([1.0]).requires_grad_()]
    seen = []

    def loss():
        seen.append(weights[0].item())
        steep = 1e30 if len(seen) == 2 else 1.0
        return (chi[0] * weights[0] * steep).sum()

    (found,) = unrolled_gradient(loss, weights, chi, lr=0.01, loss_scale=1e20)
    assert found.isnan().all()
    assert seen == pytest.approx([1.0, 0.99, 1.0, 1.0])  # numbers in every pass


def test_a_loss_without_the_weights_has_the_direct_term_alone():
    chi = [torch.tensor([2.0]).requires_grad_(), torch.tensor([1.0]).requires_grad_()]
    weights = [torch.ones(3, requires_grad=True)]
    found = unrolled_gradient(lambda: (chi[0] ** 2).sum() + 0 * weights[0].sum(), weights, chi)
    torch.testing.assert_close(found, [torch.tensor([4.0]), torch.tensor([0.0])])
