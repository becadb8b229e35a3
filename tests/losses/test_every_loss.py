"""What each registered loss must bear, over the table in cases.py."""

import re

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map

import mmsokd.losses
from mmsokd.registry import MODELS
from tests.losses.cases import CASES, build, more
from tests.losses.common import arrays, assert_agrees, feats, relative_error

every_loss = pytest.mark.parametrize('name', CASES)
LEVELWISE = [name for name in CASES if not MODELS.get(f'mmsokd.{name.split()[0]}').pyramid]


def pair(shapes, seed=1, dtype=torch.float64):
    return [tree_map(lambda x: x.to(dtype), feats(seed + i, shape)) for i, shape in enumerate(shapes)]


def leaves(*sides):
    """The tensors of both sides, of all levels."""
    return tree_flatten(sides)[0]


def of_rank(name, rank):
    """Shapes with as many dimensions and the case's channels."""
    return [(2, shape[1], 3, 2)[:rank] for shape in CASES[name].shapes[0]]


def call(loss, name, s, t):
    """The value, with the same draws each time; and what the loss tells of itself is scalars by the names it gave."""
    torch.manual_seed(0)
    found = loss(s, t, **more(name, s))
    if not loss.stats:
        return found
    assert tuple(found.stats) == loss.stats
    assert all(value.shape == () and not value.requires_grad for value in found.stats.values())
    return found.loss


def test_nobody_is_forgotten():
    ours = {name for name, cls in MODELS.module_dict.items() if cls.__module__.startswith('mmsokd.losses')}
    known = {name.split()[0] for name in CASES}
    assert ours == known, f'add a case to tests/losses/cases.py for {ours ^ known}'
    assert ours <= set(mmsokd.losses.__all__)


@every_loss
def test_against_the_slow_twin(name):
    errors = []
    for shapes in CASES[name].shapes:
        for seed in (1, 5):
            loss, (s, t) = build(name), pair(shapes, seed)
            torch.manual_seed(0)
            expected = CASES[name].twin(loss, *arrays(s, t))
            errors.append(relative_error(call(loss, name, s, t), expected))
    assert_agrees(name, errors)


@pytest.mark.parametrize('name', [name for name in CASES if not CASES[name].stops])
def test_gradient_against_finite_differences(name):
    """To the parameters, and to the teacher too: the unrolled search passes through it."""
    for shapes in CASES[name].shapes[:2]:
        loss, (s, t) = build(name), pair(shapes)
        call(loss, name, s, t)  # CRD's Z is estimated once, without a gradient
        loss.eval()
        names, parameters = zip(*loss.named_parameters(), strict=True) if list(loss.parameters()) else ((), ())

        def function(s, t, *parameters, loss=loss, names=names):
            torch.manual_seed(0)
            values = dict(zip(names, parameters, strict=True))
            found = torch.func.functional_call(loss, values, (s, t), more(name, s))
            return found.loss if loss.stats else found

        inputs = [x.detach().clone().requires_grad_() for x in (s, t, *parameters)]
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize('name', [name for name in CASES if CASES[name].zero])
def test_zero_for_equal_inputs_only(name):
    shape, _ = CASES[name].shapes[0]
    loss, (t, other) = build(name), pair((shape, shape))
    assert abs(call(loss, name, t.clone(), t).item()) < 1e-12
    assert call(loss, name, t + other, t).item() > 1e-3


@every_loss
@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e-18, 1e-13, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_value_and_gradients_are_finite_at_every_scale(name, scale):
    shapes = [*CASES[name].shapes, *([(1, c, *rest) for _, c, *rest in of_rank(name, r)] for r in CASES[name].ranks)]
    shapes += [[(1, c, 1, 1) for _, c, *_ in shapes[0]]] * (4 in CASES[name].ranks)
    loss = build(name).float()

    def scaled(by, x):
        return tree_map(lambda level: (by * level).requires_grad_(), x)

    for s, t in (pair(both, dtype=torch.float32) for both in shapes):
        ones = [tree_map(torch.ones_like, x) for x in (s, t)]
        for inputs in (
            (scaled(scale, s), scaled(1, t)),
            (scaled(scale, s), scaled(scale, t)),
            map(scaled, (scale, 1), ones),
        ):
            s_t = list(inputs)
            loss.zero_grad()
            value = call(loss, name, *s_t)
            value.backward()
            assert value.isfinite()
            used = [x for x in leaves(s_t) if x.grad is not None or not CASES[name].stops]  # a constant has none
            assert all(x.grad.isfinite().all() for x in (*used, *loss.parameters()))  # DDP waits for all of them


@every_loss
def test_fp32_inside_autocast(name):
    for shapes in CASES[name].shapes[:2]:
        loss, (s, t) = build(name).float().eval(), pair(shapes, dtype=torch.float32)
        with torch.autocast('cpu', torch.bfloat16):
            value = call(loss, name, s, t)
        assert value.dtype == torch.float32
        assert torch.equal(value, call(loss, name, s, t))
        for dtype in (torch.float16, torch.bfloat16):
            narrow = tree_map(lambda x, dtype=dtype: (300 * x).to(dtype), (s, t))
            value = call(loss, name, *narrow)
            assert value.dtype == torch.float32
            assert torch.equal(value, call(loss, name, *tree_map(torch.Tensor.float, narrow)))


@pytest.mark.parametrize('name', LEVELWISE)
@pytest.mark.parametrize('rank', [2, 3, 4])
def test_ranks(name, rank):
    loss, (s, t) = build(name), pair(of_rank(name, rank))
    assert loss.ranks == CASES[name].ranks
    if rank in CASES[name].ranks:
        assert call(loss, name, s, t).isfinite()
    else:
        with pytest.raises(ValueError, match=r'expected .*\(N, C, H, W\)|expected .*\(N, K, H, W\)'):
            call(loss, name, s, t)


@pytest.mark.parametrize('name', [name for name in CASES if build(name).same_size])
def test_sizes_must_fit(name):
    loss, (s, t) = build(name), pair(CASES[name].shapes[0])
    found = re.escape(f'student {tuple(s.shape)}, teacher {tuple(t[..., :-1].shape)}; ')
    with pytest.raises(ValueError, match=found + '.*(ConvAdapter|ResizeAdapter)'):
        call(loss, name, s, t[..., :-1])


@pytest.mark.parametrize('name', [name for name in LEVELWISE if not build(name).same_size])
def test_sizes_may_differ(name):
    loss = build(name)
    s, t = (feats(i, (5, shape[1], 3, 2 + i)) for i, shape in enumerate(CASES[name].shapes[0]))
    assert call(loss, name, s, t).isfinite()


@pytest.mark.parametrize('name', [name for name in CASES if build(name).per_position])
def test_weight(name):
    loss, (s, t) = build(name), pair(CASES[name].shapes[0])
    whole, ones = call(loss, name, s, t), torch.ones(len(s), 1, *s.shape[2:])
    for scale in (1.0, 3.0, 1e-4):
        torch.manual_seed(0)
        torch.testing.assert_close(loss(s, t, scale * ones), whole)
    assert loss(s, t, 0 * ones) == 0


@every_loss
def test_reads_no_value(name):
    pairs = [pair(shapes) for shapes in CASES[name].shapes[:2]]
    with FakeTensorMode():  # fake tensors have no values: reading one raises, as it would wait for a GPU
        loss = MODELS.build(dict(type=f'mmsokd.{name.split()[0]}', **CASES[name].cfg))
        for both in pairs:
            s, t = tree_map(lambda x: torch.randn(x.shape, requires_grad=True), both)
            call(loss, name, s, t).backward()


@pytest.mark.cuda  # the CPU has nothing to wait for
@every_loss
def test_no_step_waits_for_the_device(name):
    for shapes in CASES[name].shapes[:2]:
        loss = build(name).float().cuda()
        s, t = tree_map(lambda x: x.cuda().requires_grad_(), pair(shapes, dtype=torch.float32))
        extra = {key: [x.to('cuda') for x in samples] for key, samples in more(name, s).items()}

        def step(loss=loss, s=s, t=t, extra=extra):
            found = loss(s, t, **extra)
            (found.loss if loss.stats else found).backward()

        step()  # the first one allocates
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode('default')


@pytest.mark.cuda
@every_loss
def test_on_a_gpu_as_on_the_cpu(name, monkeypatch):
    """Value and gradients in float64, to 1e-7, with random numbers of the host for both."""
    rand, rand_like, randint = torch.rand, torch.rand_like, torch.randint
    monkeypatch.setattr(torch, 'rand', lambda *args, device='cpu', **more: rand(*args, **more).to(device))
    monkeypatch.setattr(torch, 'rand_like', lambda x: rand_like(x.cpu()).to(x.device))
    monkeypatch.setattr(torch, 'randint', lambda *args, device='cpu', **more: randint(*args, **more).to(device))
    for shapes in CASES[name].shapes[:2]:
        found = []
        for device in ('cpu', 'cuda'):
            torch.manual_seed(0)
            loss = build(name).to(device)
            s, t = tree_map(lambda x, device=device: x.to(device).requires_grad_(), pair(shapes))
            extra = {key: [x.to(device) for x in samples] for key, samples in more(name, s).items()}
            value = loss(s, t, **extra)
            value = value.loss if loss.stats else value
            value.backward()
            grads = [x.grad for x in (*leaves(s), *loss.parameters())]
            found.append([value.item(), *(x if x is None else x.cpu() for x in grads)])
        assert any(x.any() for x in found[0][1:])
        torch.testing.assert_close(*found)


WRONG = [
    ('ATLoss', dict(p=0.5), 'p: expected a number >= 1, found 0.5'),
    ('ATLoss', dict(p='2'), "p: expected a number >= 1, found '2'"),
    ('ATLoss', dict(p=float('nan')), 'p: expected a number >= 1, found nan'),
    ('CRDLoss', dict(num_samples=1), 'num_samples: expected an integer >= 2, found 1'),
    ('CRDLoss', dict(nce_k=7.0), 'nce_k: expected an integer >= 1, found 7.0'),
    ('CRDLoss', dict(feat_dim=True), 'feat_dim: expected an integer >= 1, found True'),
    ('CRDLoss', dict(temperature=0.0), 'temperature: expected a number > 0, found 0.0'),
    ('CRDLoss', dict(momentum=1.5), 'momentum: expected a number in [0, 1], found 1.5'),
    ('CRDLoss', dict(momentum='0.5'), "momentum: expected a number in [0, 1], found '0.5'"),
    ('CWDLoss', dict(tau=0), 'tau: expected a number > 0, found 0'),
    ('DISTLoss', dict(beta='x'), "beta: expected a number >= 0, found 'x'"),
    ('DISTLoss', dict(gamma=-1), 'gamma: expected a number >= 0, found -1'),
    ('DISTLoss', dict(tau=None), 'tau: expected a number > 0, found None'),
    ('DKDLoss', dict(alpha='x'), "alpha: expected a number >= 0, found 'x'"),
    ('DKDLoss', dict(beta=float('inf')), 'beta: expected a number >= 0, found inf'),
    ('DKDLoss', dict(tau=0), 'tau: expected a number > 0, found 0'),
    ('DKDLoss', dict(ignore_index='a'), "ignore_index: expected an integer, found 'a'"),
    ('DPDLoss', dict(alpha=-1), 'alpha: expected a number >= 0, found -1'),
    ('DPDLoss', dict(clip=0.5), 'clip: expected a number >= 1, found 0.5'),
    ('DPDLoss', dict(tau=0), 'tau: expected a number > 0, found 0'),
    ('DPDLoss', dict(ignore_index='a'), "ignore_index: expected an integer, found 'a'"),
    ('DRKDLoss', dict(tau=0), 'tau: expected a number > 0, found 0'),
    ('DRKDLoss', dict(ignore_index='a'), "ignore_index: expected an integer, found 'a'"),
    ('FGDLoss', dict(alpha=float('nan')), 'alpha: expected a number >= 0, found nan'),
    ('FGDLoss', dict(lambda_=-1), 'lambda_: expected a number >= 0, found -1'),
    ('FGDLoss', dict(temperature=0), 'temperature: expected a number > 0, found 0'),
    ('ITALLoss', dict(lr=0), 'lr: expected a number > 0, found 0'),
    ('ITALLoss', dict(beta='x'), "beta: expected a number >= 0, found 'x'"),
    ('ITALLoss', dict(tau=0), 'tau: expected a number > 0, found 0'),
    ('ITALLoss', dict(ignore_index=None), 'ignore_index: expected an integer, found None'),
    ('KDLoss', dict(tau='4'), "tau: expected a number > 0, found '4'"),
    ('KDLoss', dict(activation='sigmoids'), "activation: expected one of ['softmax', 'sigmoid'], found 'sigmoids'"),
    ('LDLoss', dict(tau=0), 'tau: expected a number > 0, found 0'),
    ('MGDLoss', dict(lambda_mgd=1.0), 'lambda_mgd: expected a number in [0, 1), found 1.0'),
    ('MGDLoss', dict(lambda_mgd='0.5'), "lambda_mgd: expected a number in [0, 1), found '0.5'"),
    ('PCKALoss', dict(patch_size=0), 'patch_size: expected an integer >= 1, found 0'),
    ('PCKALoss', dict(patch_size=16.0), 'patch_size: expected an integer >= 1, found 16.0'),
    ('RCKALoss', dict(picture_weight='x'), "picture_weight: expected a number >= 0, found 'x'"),
    ('RCKALoss', dict(class_weight=[1.0, 2.0]), 'class_weight: expected a number >= 0, found [1.0, 2.0]'),
    ('RKDLoss', dict(distance_weight='x'), "distance_weight: expected a number >= 0, found 'x'"),
    ('RKDLoss', dict(angle_weight=-1), 'angle_weight: expected a number >= 0, found -1'),
    ('VIDLoss', dict(eps=0.0), 'eps: expected a number > 0, found 0.0'),
    ('VIDLoss', dict(init_variance='5'), "init_variance: expected a number > 0, found '5'"),
    ('VIDLoss', dict(init_variance=1e-6), 'init_variance: expected a number above eps, 1e-05, found 1e-06'),
]


@pytest.mark.parametrize(('name', 'wrong', 'message'), WRONG)
def test_wrong_arguments_are_refused(name, wrong, message):
    with pytest.raises(ValueError, match=re.escape(f'{name}.{message}')):
        MODELS.build(dict(type=f'mmsokd.{name}', **{**CASES[name].cfg, **wrong}))
