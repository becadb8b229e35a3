import math

import pytest
import torch
from scipy import stats

from mmsokd.relax import (
    bernoulli_scores,
    categorical_scores,
    conditional_bernoulli_scores,
    conditional_categorical_scores,
    gumbel,
    logistic,
    relax_gradient,
    reversed_gradient,
    straight_through,
)

DRAWS = 40_000


def uniforms(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_straight_through_has_the_hard_value_and_the_soft_gradient():
    hard, soft = double(1.0, 0.0).requires_grad_(), double(0.3, 0.6).requires_grad_()
    out = straight_through(hard, soft**2)
    assert torch.equal(out, double(1.0, 0.0))
    (out * double(2.0, 3.0)).sum().backward()
    torch.testing.assert_close(soft.grad, double(2 * 2 * 0.3, 3 * 2 * 0.6))
    assert hard.grad is None


def test_draws_have_their_distributions():
    u = uniforms(DRAWS)
    assert stats.kstest(gumbel(u).numpy(), 'gumbel_r').pvalue > 1e-3
    assert stats.kstest(logistic(u).numpy(), 'logistic').pvalue > 1e-3


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_ends_of_the_unit_interval_are_finite(dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert gumbel(ends).isfinite().all()
    assert logistic(ends).isfinite().all()
    probability = ends.clone().requires_grad_()
    scores = bernoulli_scores(probability, torch.full_like(ends, 0.5))
    assert scores.isfinite().all()
    assert ((scores > 0) == torch.tensor([False, True])).all()


def test_categorical_scores_win_with_their_probability_whatever_the_offset():
    logits = double(0.3, -1.0, 1.2)
    p = [math.exp(v) for v in logits.tolist()]
    u = uniforms(DRAWS, 3)
    counts = torch.bincount(categorical_scores(logits, u).argmax(-1), minlength=3)
    expected = [v / sum(p) * DRAWS for v in p]
    assert stats.chisquare(counts.numpy(), expected).pvalue > 1e-3
    torch.testing.assert_close(categorical_scores(logits + 7, u), categorical_scores(logits, u))


@pytest.mark.parametrize('p', [0.02, 0.5, 0.9])
def test_bernoulli_scores_are_positive_with_their_probability(p):
    fired = int((bernoulli_scores(torch.tensor(p, dtype=torch.float64), uniforms(DRAWS)) > 0).sum())
    assert stats.binomtest(fired, DRAWS, p).pvalue > 1e-3


# ---- conditional draws: they keep the choice, and mixed over the choices they are the unconditional ones -----------


def test_conditional_categorical_scores():
    logits = double(0.3, -1.0, 1.2).expand(DRAWS, 3)
    choice = categorical_scores(logits, uniforms(DRAWS, 3)).argmax(-1)
    given = conditional_categorical_scores(logits, choice, uniforms(DRAWS, 3, seed=1))
    assert torch.equal(given.argmax(-1), choice)
    log_p = logits[0] - math.log(sum(math.exp(v) for v in logits[0].tolist()))
    for k in range(3):
        assert stats.kstest((given[:, k] - log_p[k]).numpy(), 'gumbel_r').pvalue > 1e-3


@pytest.mark.parametrize('p', [0.1, 0.5, 0.8])
def test_conditional_bernoulli_scores(p):
    probability = torch.full((DRAWS,), p, dtype=torch.float64)
    gate = (bernoulli_scores(probability, uniforms(DRAWS)) > 0).double()
    given = conditional_bernoulli_scores(probability, gate, uniforms(DRAWS, seed=1))
    assert torch.equal((given > 0).double(), gate)
    assert stats.kstest((given - math.log(p / (1 - p))).numpy(), 'logistic').pvalue > 1e-3


# ---- RELAX ---------------------------------------------------------------------------------------------------------

VALUES = [[0.2, 1.0], [2.0, -1.0], [0.5, 3.0]]  # f(category, gate)


def exact_gradient(logits, p):
    """Of E f by hand, over the six outcomes."""
    e = [math.exp(v) for v in logits]
    q = [v / sum(e) for v in e]
    means = [VALUES[k][0] * (1 - p) + VALUES[k][1] * p for k in range(3)]
    total = sum(a * b for a, b in zip(q, means, strict=True))
    by_logit = [q[k] * (means[k] - total) for k in range(3)]
    by_p = sum(q[k] * (VALUES[k][1] - VALUES[k][0]) for k in range(3))
    return double(*by_logit), double(by_p)


def one_relax(logits, p, weights, seed):
    """One RELAX sample for f(category, gate); c is linear in the relaxed draws and of any strength."""
    u = uniforms(8, seed=seed)
    scores = torch.cat([categorical_scores(logits, u[:3]), bernoulli_scores(p, u[3:4])])
    choice, gate = scores[:3].argmax(), (scores[3:] > 0).double()
    conditional = torch.cat(
        [conditional_categorical_scores(logits, choice, u[4:7]), conditional_bernoulli_scores(p, gate, u[7:])]
    )
    log_p = logits.log_softmax(0)[choice] + (gate * p.log() + (1 - gate) * (1 - p).log()).sum()

    def control(z):
        soft = torch.cat([(z[:3] / 0.5).softmax(0), torch.sigmoid(z[3:] / 0.5)])
        return torch.tanh(weights[0] * soft).sum() + weights[1]

    value = double(VALUES[int(choice)][int(gate)]).squeeze()
    return relax_gradient(value, log_p, control, scores, conditional, [logits, p], weights)


@pytest.mark.parametrize('strength', [0.0, 1.5])
def test_relax_is_unbiased_whatever_the_control_variate(strength):
    logits, p = double(0.3, -0.5, 0.6).requires_grad_(), double(0.35).requires_grad_()
    weights = [torch.full((4,), strength, dtype=torch.float64, requires_grad=True), double(0.4).sum().requires_grad_()]
    samples = [one_relax(logits, p, weights, seed)[0] for seed in range(1200)]
    for ours, exact in zip(zip(*samples, strict=True), exact_gradient(logits.tolist(), p.item()), strict=True):
        ours = torch.stack(ours)
        error = ours.std(0) / math.sqrt(len(ours))
        assert ((ours.mean(0) - exact).abs() < 4.5 * error).all()
        assert (error < 0.1).all()  # so that the line above says something


def test_relax_gives_the_gradient_of_its_own_square():
    logits, p = double(0.3, -0.5, 0.6).requires_grad_(), double(0.35).requires_grad_()
    weights = [double(0.5, -1.0, 0.3, 0.8).requires_grad_(), double(0.4).sum().requires_grad_()]

    def square(weights):
        return sum(float((g**2).sum()) for g in one_relax(logits, p, weights, seed=5)[0])

    _, gradient = one_relax(logits, p, weights, seed=5)
    for i in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[i] = 1e-6
        up, down = ([(weights[0].detach() + s * shift).requires_grad_(), weights[1]] for s in (1, -1))
        torch.testing.assert_close(gradient[0][i].item(), (square(up) - square(down)) / 2e-6, rtol=1e-5, atol=1e-7)


def test_training_the_control_variate_lowers_the_variance():
    logits, p = double(0.3, -0.5, 0.6).requires_grad_(), double(0.35).requires_grad_()
    weights = [torch.zeros(4, dtype=torch.float64, requires_grad=True), torch.zeros((), dtype=torch.float64)]
    weights[1].requires_grad_()

    def spread():
        samples = [torch.cat(one_relax(logits, p, weights, seed)[0]) for seed in range(10_000, 10_400)]
        return float(torch.stack(samples).var(0).sum())

    before = spread()
    adam = torch.optim.Adam(weights, lr=0.02)
    for seed in range(400):
        _, gradient = one_relax(logits, p, weights, seed)
        for w, g in zip(weights, gradient, strict=True):
            w.grad = g
        adam.step()
    assert spread() < 0.8 * before


def test_relax_leaves_no_graph():
    logits, p = double(0.3, -0.5, 0.6).requires_grad_(), double(0.35).requires_grad_()
    weights = [torch.ones(4, dtype=torch.float64, requires_grad=True), double(0.4).sum().requires_grad_()]
    for gradients in one_relax(logits, p, weights, seed=0):
        assert not any(g.requires_grad for g in gradients)
    assert all(x.grad is None for x in (logits, p, *weights))


def test_a_reversed_gradient_leaves_the_value():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    found = reversed_gradient(x, 0.3)
    assert torch.equal(found, x)
    found.square().sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * 2 * x.detach())
