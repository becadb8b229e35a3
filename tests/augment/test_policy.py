import copy
import math

import pytest
import torch
from scipy import stats

from mmsokd.augment import FEATURE_OPS, SUB_POLICIES, Policy
from mmsokd.augment import policy as policy_module

DRAWS = 20_000


def trained(seed=0):
    """A policy whose numbers are all different."""
    generator = torch.Generator().manual_seed(seed)
    policy = Policy()
    policy.alpha.copy_(torch.randn(36, generator=generator))
    policy.beta.copy_(torch.rand(36, 2, generator=generator))
    policy.magnitude.copy_(torch.rand(36, 2, generator=generator))
    return policy


def same(a, b):
    pairs = [
        (a.choice, b.choice),
        (a.gates, b.gates),
        (a.magnitudes, b.magnitudes),
        *zip(a.uniforms, b.uniforms, strict=True),
    ]
    return a.seed == b.seed and all(torch.equal(x, y) for x, y in pairs)


def test_start():
    policy = Policy()
    assert len(SUB_POLICIES) == len({frozenset(pair) for pair in SUB_POLICIES}) == 36
    assert all(len(set(pair)) == 2 for pair in SUB_POLICIES)
    torch.testing.assert_close(policy.alpha, torch.full((36,), 1e-3))
    torch.testing.assert_close(policy.beta, torch.full((36, 2), 0.5))
    torch.testing.assert_close(policy.magnitude, torch.full((36, 2), 0.5))
    assert not list(policy.parameters())
    assert not list(policy.buffers())


# ---- probabilities, by counting ------------------------------------------------------------------------------------


def test_sub_policies_come_with_softmax_alpha():
    policy = trained()
    e = [math.exp(a) for a in policy.alpha.tolist()]
    counts = torch.bincount(policy.sample(DRAWS).choice, minlength=36)
    assert stats.chisquare(counts.numpy(), [x / sum(e) * DRAWS for x in e]).pvalue > 1e-3


def test_operations_fire_with_beta():
    policy = trained()
    counts = policy.sample(DRAWS).gates.sum(0).long()
    tests = zip(counts.flatten().tolist(), policy.beta.flatten().tolist(), strict=True)
    assert min(stats.binomtest(count, DRAWS, p).pvalue for count, p in tests) > 1e-3 / 72


def test_draws_of_following_steps_are_independent():
    """Not only the rows of one draw: each step seeds its own generator."""
    policy = Policy()
    draws = [policy.sample(1) for _ in range(3600)]
    counts = torch.bincount(torch.cat([d.choice for d in draws]), minlength=36)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    fired = torch.cat([d.fires for d in draws])[:, 0]
    after_fired = fired[1:][fired[:-1] > 0]
    assert stats.binomtest(int(after_fired.sum()), len(after_fired), 0.5).pvalue > 1e-3


def test_the_gates_and_levels_are_those_of_the_choice():
    policy = trained()
    draw = policy.sample(50)
    for row, choice in enumerate(draw.choice.tolist()):
        assert draw.fires[row].tolist() == draw.gates[row, choice].tolist()
        assert draw.magnitudes[row].tolist() == policy.magnitude[choice].tolist()


@pytest.mark.parametrize(('level', 'used'), [(-0.2, 0.0), (1.3, 1.0)])
def test_levels_are_clamped_in_use(level, used):
    policy = Policy()
    policy.magnitude.fill_(level)
    assert policy.sample(1).magnitudes.tolist() == [[used, used]]


def test_clamp_leaves_a_gate_its_gradient():
    policy = Policy()
    policy.beta[0], policy.beta[1], policy.magnitude[0] = -0.1, 1.1, 1.5
    policy.clamp_()
    assert policy.magnitude[0].tolist() == [1.0, 1.0]
    beta = policy.beta.clone().requires_grad_()
    torch.sigmoid(policy_module.bernoulli_scores(beta, torch.full((36, 2), 0.5))).sum().backward()
    assert (beta.grad > 0).all()
    assert (policy.beta[:2] - torch.tensor([[0.0], [1.0]])).abs().max() < 1e-5


# ---- replay --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_same_draws():
    policy = trained()
    for _ in range(3):
        policy.sample(2)
    state = {name: value.cpu() for name, value in policy.state_dict().items()}  # as MMEngine saves it
    ahead = [policy.sample(2) for _ in range(3)]
    torch.rand(7)  # the global generator is somewhere else in the resumed run
    resumed = Policy()
    alpha = resumed.alpha
    resumed.load_state_dict(state)
    assert resumed.alpha is alpha  # an optimizer may hold it
    assert resumed.draws == 3
    for name, value in policy.tensors().items():
        assert torch.equal(resumed.tensors()[name], value)
    assert all(same(resumed.sample(2), draw) for draw in ahead)


def test_a_large_counter_survives_the_checkpoint():
    policy, copied = Policy(), Policy()
    policy.draws = 2**24 + 1  # beyond what float32 counts
    copied.load_state_dict(policy.state_dict())
    assert copied.draws == 2**24 + 1


def test_draws_depend_on_step_seed_and_rank(monkeypatch):
    def first():
        return Policy().sample(1)

    here = first()
    assert same(first(), here)
    policy = Policy()
    policy.sample(1)
    assert not same(policy.sample(1), here)
    monkeypatch.setattr(policy_module, 'get_rank', lambda: 1)
    assert not same(first(), here)
    monkeypatch.undo()
    torch.manual_seed(1)
    assert not same(first(), here)
    policy = Policy()
    policy.seed = 0  # the run's, which conftest gives PyTorch
    assert same(policy.sample(1), here)


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Policy().sample(4).randomness(torch.zeros(4, 3, 2, 2), noise=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_advance_the_next_draw_is_the_same():
    policy = Policy()
    first = policy.sample(1, advance=False)
    assert same(policy.sample(1), first)
    assert not same(policy.sample(1), first)


def test_deepcopy_draws_alike_and_stands_apart():
    policy = trained()
    copied = copy.deepcopy(policy)
    assert same(copied.sample(2), policy.sample(2))
    copied.alpha.add_(1)
    assert not torch.equal(copied.alpha, policy.alpha)


# ---- the operations' own randomness --------------------------------------------------------------------------------


def test_levels_of_one_draw_share_their_randomness():
    draw = Policy().sample(1)
    fine, coarse = (draw.randomness(torch.zeros(3, 8, s, s + 1), noise=False) for s in (9, 2))
    for name in ('centre', 'order', 'chosen', 'keep'):
        assert torch.equal(getattr(fine, name), getattr(coarse, name))
    assert fine.noise is None
    again = [draw.randomness(torch.zeros(2, 3, 4, 5), noise=True).noise for _ in range(2)]
    assert torch.equal(*again)
    assert again[0].shape == (2, 3, 4, 5)


def test_the_operations_randomness_tells_nothing_of_the_choice():
    """One generator's first numbers must not serve twice."""
    draw = Policy().sample(1)
    rand = draw.randomness(torch.zeros(64, 64, 2, 2), noise=True)
    chose = set(torch.cat([u.flatten() for u in draw.uniforms]).tolist())
    for own in rand[:4]:
        assert len(chose & set(own.flatten().tolist())) <= 1  # float32 uniforms may meet once


def test_str_reads_well():
    policy = Policy()
    policy.alpha[SUB_POLICIES.index(('Rotate', 'Cutout'))] = 100
    policy.magnitude.fill_(0.25)
    policy.beta[:, 0], policy.beta[:, 1] = 1, 0
    assert str(policy.sample(2)) == 'Rotate(0.25) + Cutout(0.25) off; Rotate(0.25) + Cutout(0.25) off'


# ---- diagnostics ---------------------------------------------------------------------------------------------------


def test_entropy():
    policy = trained()
    torch.testing.assert_close(Policy().entropy(), math.log(36), rtol=1e-6, atol=0)
    p = policy.alpha.double().exp().numpy()
    torch.testing.assert_close(policy.entropy(), float(stats.entropy(p)), rtol=1e-6, atol=0)


def test_expected_ops_are_the_mean_of_many_draws():
    policy = trained()
    draw = policy.sample(DRAWS)
    fires, levels = {op: 0 for op in FEATURE_OPS}, {op: 0.0 for op in FEATURE_OPS}
    for choice, gates, m in zip(draw.choice.tolist(), draw.fires.tolist(), draw.magnitudes.tolist(), strict=True):
        for op, gate, level in zip(SUB_POLICIES[choice], gates, m, strict=True):
            fires[op] += gate
            levels[op] += gate * level
    table = policy.expected_ops()
    assert list(table) == list(FEATURE_OPS)
    for op, (chance, level) in table.items():
        assert abs(fires[op] / DRAWS - chance) < 4 * math.sqrt(chance * (1 - chance) / DRAWS)
        assert abs(levels[op] / fires[op] - level) < 4 * 0.5 / math.sqrt(fires[op])
