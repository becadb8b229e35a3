import copy
import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.augment import FEATURE_OPS, SUB_POLICIES, FeatureAugmentationNeck
from mmsokd.registry import MODELS
from tests.strategies import features, memory_format

PATHWISE = ['ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate', 'Noise']  # and Cutout, whose value has steps


def searching(**kwargs):
    neck = FeatureAugmentationNeck(**kwargs)
    neck.searching = True
    return neck


def given_draw(neck, pair, gates=(1, 1), levels=(0.313, 0.671), rows=1):
    """A draw of this outcome: samples until its discrete part comes."""
    k = SUB_POLICIES.index(pair)
    neck.policy.magnitude[k] = torch.tensor(levels)
    neck.policy.alpha[k] = 3.0
    for _ in range(500):
        draw = neck.sample(rows)
        if draw.choice.tolist() == [k] and draw.fires.tolist() == [list(gates)]:
            return draw
    raise AssertionError(f'no draw of {pair} with gates {gates}')


def pyramid(n=2, c=4):
    return [torch.randn(n, c, 9, 12), torch.randn(n, c, 5, 6), torch.randn(n, c, 1, 2)]


# ---- the value -----------------------------------------------------------------------------------------------------


def test_the_two_operations_run_one_after_the_other():
    neck = FeatureAugmentationNeck()
    draw = given_draw(neck, ('TranslateX', 'Rotate'))
    feat = torch.randn(2, 4, 9, 12)
    expected = feat
    for name, level in (('TranslateX', 0.313), ('Rotate', 0.671)):
        op = FEATURE_OPS[name]
        expected = op.function(expected, torch.full((2,), op.lo + level * (op.hi - op.lo)), None)
    torch.testing.assert_close(neck([feat], draw)[0], expected)


@pytest.mark.parametrize('gates', [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_only_open_gates_run(gates):
    neck = FeatureAugmentationNeck()
    calls = []
    for name, op in neck.ops.items():
        neck.ops[name] = op._replace(function=lambda feat, v, rand, name=name: calls.append(name) or feat)
    neck(pyramid(), given_draw(neck, ('ShearY', 'Noise'), gates))
    assert calls == [name for name, gate in zip(('ShearY', 'Noise'), gates, strict=True) if gate] * 3


def test_closed_gates_keep_the_feature_and_drop_its_graph():
    neck = FeatureAugmentationNeck()
    feat = torch.randn(2, 4, 5, 6, requires_grad=True)
    (out,) = neck([feat * 1], given_draw(neck, ('ShearX', 'Noise'), (0, 0)))
    assert torch.equal(out, feat)
    assert not out.requires_grad


@given(feat=features(), seed=st.integers(0, 999), per_sample=st.booleans())
def test_shape_dtype_and_format_stay(feat, seed, per_sample):
    neck = FeatureAugmentationNeck(per_sample=per_sample)
    neck.policy.beta.fill_(1)
    neck.policy.magnitude.uniform_(-0.1, 1.1, generator=torch.Generator().manual_seed(seed))
    neck.policy.draws, before = seed, feat.clone()
    (out,) = neck([feat], neck.sample(len(feat)))
    assert (out.shape, out.dtype) == (feat.shape, feat.dtype)
    assert out.is_contiguous(memory_format=memory_format(feat))
    assert out.isfinite().all()
    assert torch.equal(feat, before)


@pytest.mark.parametrize('pair', SUB_POLICIES[::5], ids='+'.join)
def test_all_levels_get_the_same_draw(pair):
    neck = FeatureAugmentationNeck()
    feat = torch.randn(3, 8, 7, 5)
    out = neck([feat, feat.clone()], given_draw(neck, pair))
    assert torch.equal(*out)


def test_a_dropped_channel_is_dropped_on_every_level():
    neck = FeatureAugmentationNeck()
    out = neck([torch.ones(3, 32, s, s) for s in (8, 3, 1)], given_draw(neck, ('Noise', 'ChannelDrop'), (0, 1)))
    kept = [level.amax(dim=(2, 3)) for level in out]
    assert 0 < kept[0].mean() < 1
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_per_sample_gives_each_sample_its_own_draw():
    neck = FeatureAugmentationNeck(per_sample=True)
    neck.policy.magnitude.uniform_(0, 1, generator=torch.Generator().manual_seed(0))
    feats = pyramid(n=24, c=8)
    draw = neck.sample(24)
    assert len(set(draw.choice.tolist())) > 5
    out = neck(feats, draw)
    for n in range(24):
        row = slice(n, n + 1)
        alone = replace(draw, choice=draw.choice[row], gates=draw.gates[row], magnitudes=draw.magnitudes[row])
        for level, whole in zip(out, neck(feats, alone), strict=True):
            torch.testing.assert_close(level[n], whole[n])


@pytest.mark.parametrize('magnitude_grad', ['straight_through', 'pathwise'])
@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
@pytest.mark.parametrize('per_sample', [False, True])
def test_searching_changes_the_gradient_and_not_the_value(estimator, magnitude_grad, per_sample):
    neck = searching(estimator=estimator, magnitude_grad=magnitude_grad, per_sample=per_sample)
    neck.policy.magnitude.uniform_(0, 1, generator=torch.Generator().manual_seed(0))
    feats = pyramid(n=6, c=8)
    for _ in range(15):
        draw = neck.sample(6)
        with torch.no_grad():  # the caller may be in the teacher's no_grad
            searched = neck(feats, draw)
        for a, b in zip(searched, neck(feats, replace(draw, chi=None)), strict=True):
            assert a.requires_grad
            assert not b.requires_grad
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_rescaled_drop_keeps_the_mean():
    neck = FeatureAugmentationNeck(rescale_drop=True)
    draw = given_draw(neck, ('Noise', 'ChannelDrop'), (0, 1), (0.0, 1.0))
    (out,) = neck([torch.ones(2, 64, 2, 2)], draw)
    assert set(out.unique().tolist()) == {0.0, 2.0}


# ---- the gradient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('gates', [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize('tau', [0.5, 2.0])
def test_straight_through_by_hand(gates, tau):
    """L = <G, F~> of TranslateX, then ChannelDrop, which is a mask and so easy to go back through."""
    neck = searching(temperature=tau)
    neck.policy.beta.fill_(0.4)
    pair = ('TranslateX', 'ChannelDrop')
    draw = given_draw(neck, pair, gates)
    k = SUB_POLICIES.index(pair)
    feat, G = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    neck.search((neck([feat], draw)[0] * G).sum(), draw)
    gradient = neck.pop_gradient()

    rand = draw.randomness(feat, noise=False)
    moved = FEATURE_OPS['TranslateX'].function(feat, torch.full((2,), -0.45 + 0.313 * 0.9), rand)
    first = moved if gates[0] else feat
    mask = (rand.keep >= 0.671 * 0.5).float()[:, :, None, None]
    last = first * mask if gates[1] else first
    G, feat, moved, first, last, mask = (x.double().numpy() for x in (G, feat, moved, first, last, mask))

    u_choice, u_gate = (u[0].double().numpy() for u in draw.uniforms)
    z = (neck.policy.alpha.double().numpy() - np.log(-np.log(u_choice))) / tau
    w = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    by_alpha = (G * (last - feat)).sum() * w[k] * ((np.arange(36) == k) - w) / tau
    torch.testing.assert_close(gradient['alpha'].double().numpy(), by_alpha, rtol=1e-3, atol=1e-4)

    u = u_gate[k]
    s = 1 / (1 + np.exp(-(np.log(0.4 / 0.6) + np.log(u / (1 - u))) / tau))
    slope = s * (1 - s) / tau / (0.4 * 0.6)
    back = G * mask if gates[1] else G
    by_beta = np.zeros((36, 2))
    by_beta[k] = (back * (moved - feat)).sum() * slope[0], (G * (first * mask - first)).sum() * slope[1]
    torch.testing.assert_close(gradient['beta'].double().numpy(), by_beta, rtol=1e-3, atol=1e-4)

    by_level = np.zeros((36, 2))
    by_level[k] = np.array(gates) * G.sum()
    torch.testing.assert_close(gradient['magnitude'].double().numpy(), by_level, rtol=1e-3, atol=1e-4)


def slopes(neck, feat, G, draw, eps=1e-6):
    """dL/dm by central differences of the plain forward in float64."""
    feat, G, levels = feat.double(), G.double(), draw.magnitudes.double()
    found = []
    for step in torch.eye(2, dtype=torch.float64) * eps:
        up, down = ((neck([feat], replace(draw, chi=None, magnitudes=levels + s * step))[0] * G).sum() for s in (1, -1))
        found.append(float(up - down) / (2 * eps))
    return torch.tensor(found)


@pytest.mark.parametrize('pair', [p for p in SUB_POLICIES if set(p) <= set(PATHWISE)], ids='+'.join)
@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
def test_pathwise_by_finite_differences(pair, estimator):
    neck = searching(magnitude_grad='pathwise', estimator=estimator)
    draw = given_draw(neck, pair)
    feat, G = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    (grad,) = torch.autograd.grad((neck([feat], draw)[0] * G).sum(), draw.chi['magnitude'])
    k = SUB_POLICIES.index(pair)
    torch.testing.assert_close(grad[k], slopes(neck, feat, G, draw), rtol=2e-3, atol=2e-3)
    assert torch.equal(grad.flatten(1).abs().sum(1).nonzero().flatten(), torch.tensor([k]))


def test_pathwise_takes_straight_through_where_there_is_no_derivative():
    neck = searching(magnitude_grad='pathwise')
    draw = given_draw(neck, ('Rotate', 'ChannelDrop'))
    feat, G = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    (grad,) = torch.autograd.grad((neck([feat], draw)[0] * G).sum(), draw.chi['magnitude'])
    rotate, drop = grad[SUB_POLICIES.index(('Rotate', 'ChannelDrop'))]
    torch.testing.assert_close(drop, G.sum())
    torch.testing.assert_close(rotate, slopes(neck, feat, G, draw)[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('magnitude_grad', ['straight_through', 'pathwise'])
def test_a_closed_gate_gives_its_level_no_gradient(magnitude_grad):
    neck = searching(magnitude_grad=magnitude_grad)
    draw = given_draw(neck, ('Rotate', 'Noise'), (0, 1))
    (grad,) = torch.autograd.grad(neck([torch.rand(2, 3, 6, 7)], draw)[0].sum(), draw.chi['magnitude'])
    assert grad[SUB_POLICIES.index(('Rotate', 'Noise')), 0] == 0
    assert grad.abs().sum() > 0


def test_relax_is_unbiased_through_the_neck():
    """An objective of the discrete draw alone, whose expectation is known: a[choice] + c . fires."""
    neck = searching(estimator='relax')
    neck.policy.alpha[7] = 3.0
    neck.policy.beta.fill_(0.35)
    a, c = torch.linspace(-1, 1, 36), torch.tensor([1.0, -2.0])
    samples = {'alpha': [], 'beta': []}
    for _ in range(1500):
        draw = neck.sample(1)
        neck.search(a[draw.choice].sum() + (draw.fires @ c).sum() + 0 * draw.chi['magnitude'].sum(), draw)
        gradient = neck.pop_gradient()
        for name, kept in samples.items():
            kept.append(gradient[name].double())
    e = np.exp(neck.policy.alpha.double().numpy())
    p = e / e.sum()
    exact = {'alpha': p * (a.numpy() - (p * a.numpy()).sum()), 'beta': p[:, None] * c.numpy()}
    for name, kept in samples.items():
        values = torch.stack(kept)
        error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - torch.from_numpy(exact[name])).abs() < 4.5 * error).all()
    assert (error < 0.1).all()
    assert abs(exact['beta'][7]).min() > 0.3  # so that the lines above say something


@pytest.mark.parametrize('magnitude_grad', ['straight_through', 'pathwise'])
@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
def test_autocast_changes_no_gradient(estimator, magnitude_grad):
    neck = searching(estimator=estimator, magnitude_grad=magnitude_grad)
    draw = given_draw(neck, ('Rotate', 'Noise'))
    feat, target = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    gradients = []
    for on in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=on):
            neck.search(neck.objective(neck([feat], draw), [target]), draw)
        gradients.append(neck.pop_gradient())
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
@pytest.mark.parametrize('per_sample', [False, True])
def test_draws_and_gradients_on_a_gpu_as_on_the_cpu(estimator, per_sample):
    noisy = [k for k, pair in enumerate(SUB_POLICIES) if 'Noise' in pair]  # whose numbers are the device's own
    feats, targets = pyramid(), pyramid()
    found = []
    for device in ('cpu', 'cuda'):
        neck = searching(estimator=estimator, per_sample=per_sample)
        neck.policy.alpha[noisy] = -50
        for _ in range(5):
            draw = neck.sample(2, device)
            refined = neck([x.to(device) for x in feats], draw)
            neck.search(neck.objective(refined, [x.to(device) for x in targets]), draw)
            gradient = neck.pop_gradient()
            assert all(x.device.type == 'cpu' for x in (draw.choice, draw.magnitudes, *gradient.values()))
            found.append((device, str(draw), [x.detach().cpu() for x in refined], gradient))
    for (_, *one), (_, *other) in zip(found[:5], found[5:], strict=True):
        torch.testing.assert_close(one[1:], other[1:], rtol=1e-4, atol=1e-5)
        assert one[0] == other[0]


@pytest.mark.cuda
@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
def test_no_step_waits_for_the_device(estimator):
    neck = searching(estimator=estimator)
    feats, targets = ([x.cuda() for x in pyramid()] for _ in range(2))

    def step():
        draw = neck.sample(2, 'cuda')
        neck.search(neck.objective(neck(feats, draw), targets), draw)

    for _ in range(20):
        step()  # allocates
    neck.policy.draws = 0
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(20):
            step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert neck.pop_gradient() is not None


# ---- the search ----------------------------------------------------------------------------------------------------


def test_gradients_accumulate_and_pop():
    neck, feat, target = searching(), torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    assert neck.pop_gradient() is None
    draws, alone = [neck.sample(2) for _ in range(3)], []
    for draw in draws:
        neck.search(neck.objective(neck([feat], draw), [target]), draw)
        alone.append(neck.pop_gradient())
    for draw in draws:
        neck.search(neck.objective(neck([feat], draw), [target]), draw)
    together = neck.pop_gradient()
    assert neck.pop_gradient() is None
    assert together.keys() == neck.search_parameters().keys()
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name] + alone[2][name]) / 3)
        assert value.shape == neck.search_parameters()[name].shape
        assert not value.requires_grad
    assert together['alpha'].abs().sum() > 0


@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
def test_no_graph_outlives_the_step(estimator):
    neck = searching(estimator=estimator)
    draw = neck.sample(2)
    objective = neck.objective(neck([torch.randn(2, 3, 6, 7)], draw), [torch.randn(2, 3, 6, 7)])
    neck.search(objective, draw)
    leaf = weakref.ref(draw.chi['alpha'])
    copied = copy.deepcopy(neck)  # refuses what has a graph
    del draw, objective
    gc.collect()
    assert leaf() is None
    torch.testing.assert_close(copied.pop_gradient(), neck.pop_gradient())


def waves():
    """A teacher's feature that is smooth along x."""
    return torch.sin(torch.arange(12.0) / 2 + torch.rand(16, 6, 1, 1) * 6).expand(16, 6, 8, 12).contiguous()


def mean_objective(neck, feat, target):
    """L_aug over many draws, the same ones for every policy."""
    probe = copy.deepcopy(neck)
    probe.searching, probe.policy.draws = False, 100_000
    return np.mean([float(neck.objective(probe([feat], probe.sample(16)), [target])) for _ in range(150)])


def search(neck, feat, target, steps=1000, lr=0.01):
    adam = torch.optim.Adam(neck.search_parameters().values(), lr=lr)
    for _ in range(steps):
        draw = neck.sample(len(feat))
        neck.search(neck.objective(neck([feat], draw), [target]), draw)
        gradient = neck.pop_gradient()
        for name, parameter in neck.search_parameters().items():
            parameter.grad = gradient[name]
        adam.step()
        neck.policy.clamp_()


@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
@pytest.mark.parametrize('magnitude_grad', ['straight_through', 'pathwise'])
def test_the_search_lowers_l_aug(estimator, magnitude_grad):
    """The student sees the teacher moved by a sixth of the width, which TranslateX can do."""
    neck, feat = searching(estimator=estimator, magnitude_grad=magnitude_grad), waves()
    target = FEATURE_OPS['TranslateX'].function(feat, torch.full((16,), 1 / 6), None)
    before = mean_objective(neck, feat, target)
    search(neck, feat, target)
    assert mean_objective(neck, feat, target) < 0.9 * before
    assert neck.policy.expected_ops()['TranslateX'][1] > 0.6  # the way that the student went


@pytest.mark.parametrize('magnitude_grad', ['straight_through', 'pathwise'])
def test_the_search_learns_to_leave_a_perfect_teacher_alone(magnitude_grad):
    """Of straight-through alone: RELAX's variance hides so small an L_aug in as many steps."""
    neck, feat = searching(magnitude_grad=magnitude_grad), waves()
    before = mean_objective(neck, feat, feat)
    search(neck, feat, feat)
    assert mean_objective(neck, feat, feat) < 0.5 * before
    assert sum(chance for chance, _ in neck.policy.expected_ops().values()) < 0.5  # of two operations, one fired


def test_objective_and_norm_ratio():
    refined = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 2).bfloat16()]
    target = [torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 2, 2)]
    a, b = ([x.detach().float().numpy() for x in level] for level in (refined, target))
    expected = np.mean([0.5 * np.mean((p - q) ** 2) for p, q in zip(a, b, strict=True)])
    objective = FeatureAugmentationNeck.objective(refined, target)
    torch.testing.assert_close(objective.item(), float(expected), rtol=1e-5, atol=0)
    assert not objective.requires_grad  # the student is a constant

    def norm(levels):
        return math.sqrt(sum((x**2).sum() for x in levels))

    ratio = FeatureAugmentationNeck.norm_ratio(refined, target)
    torch.testing.assert_close(ratio.item(), norm(a) / norm(b), rtol=1e-5, atol=0)
    assert not ratio.requires_grad
    assert FeatureAugmentationNeck.norm_ratio([torch.ones(1)], [torch.zeros(1)]).isfinite()


# ---- exposed, for the unrolled mode --------------------------------------------------------------------------------


def test_exposed_passes_share_leaves_and_draw_with_the_step_after():
    neck = FeatureAugmentationNeck()
    neck.sample(1)
    with neck.exposed() as chi:
        assert neck.is_exposed
        passes = [neck.sample(1) for _ in range(3)]
        assert all(draw.chi is chi for draw in passes)
        (out,) = neck([torch.randn(2, 3, 6, 7)], passes[0])
        assert torch.autograd.grad(out.sum(), chi['magnitude'])[0].shape == (36, 2)
    assert not neck.is_exposed
    step = neck.sample(1)
    assert step.chi is None
    assert {(draw.seed, str(draw)) for draw in passes} == {(step.seed, str(step))}
    assert neck.sample(1).seed != step.seed


def test_exposed_ends_where_the_pass_fails():
    neck = FeatureAugmentationNeck()
    with pytest.raises(RuntimeError, match='boom'), neck.exposed():
        raise RuntimeError('boom')
    assert not neck.is_exposed


# ---- an ordinary module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
def test_state_round_trip(estimator):
    neck, other = (MODELS.build(dict(type='mmsokd.FeatureAugmentationNeck', estimator=estimator)) for _ in range(2))
    for value in neck.search_parameters().values():
        value.add_(torch.rand(value.shape))
    neck.sample(1)
    state = neck.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other.load_state_dict(state)
    for name, value in other.search_parameters().items():
        assert torch.equal(value, neck.search_parameters()[name])
    assert other.sample(1).seed == neck.sample(1).seed


def test_nothing_for_the_optimizer_and_the_policy_stays_on_the_host():
    neck = FeatureAugmentationNeck(estimator='relax').half().double().to('meta')
    assert not list(neck.parameters())
    assert not list(neck.buffers())
    assert all(v.dtype == torch.float32 and v.device.type == 'cpu' for v in neck.search_parameters().values())


@pytest.mark.parametrize(
    ('option', 'found', 'hint'),
    [
        ('estimator', 'relx', "did you mean 'relax'"),
        ('magnitude_grad', 'path', "did you mean 'pathwise'"),
        ('temperature', 0, 'a number > 0'),
    ],
)
def test_bad_options(option, found, hint):
    with pytest.raises(ValueError, match=f'refine.{option}.*{hint}'):
        FeatureAugmentationNeck(**{option: found})
