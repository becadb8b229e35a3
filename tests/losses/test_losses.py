from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmsokd.losses
from mmsokd.losses import at_loss, fitnet_loss, pkd_loss
from mmsokd.registry import MODELS
from tests.losses.cases import ELSEWHERE, LOSS_CASES


def feats(seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, channels, 5, 6, generator=generator, dtype=torch.float64)


def build(name):
    return MODELS.build(dict(type=f'mmsokd.{name}', **LOSS_CASES[name][0]))


def test_nobody_is_forgotten():
    ours = {name for name, cls in MODELS.module_dict.items() if cls.__module__.startswith('mmsokd.losses')}
    known = {*LOSS_CASES, *ELSEWHERE}
    assert ours == known, f'add a case to tests/losses/cases.py for {ours ^ known}'
    assert ours <= set(mmsokd.losses.__all__)
    for name, file in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text()
        assert name in text
        assert 'reference' in text, f'{file}: {name} has no slow twin'


@pytest.mark.parametrize('name', LOSS_CASES)
def test_against_the_slow_twin(name):
    s, t = feats(1), feats(2)
    expected = LOSS_CASES[name][1](s.numpy(), t.numpy())
    torch.testing.assert_close(build(name)(s, t).item(), float(expected), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('name', LOSS_CASES)
def test_gradient_against_finite_differences(name):
    loss, s, t = build(name), feats(1).requires_grad_(), feats(2).requires_grad_()
    assert torch.autograd.gradcheck(loss, (s, t))  # for the teacher too: the unrolled search passes through it


@pytest.mark.parametrize('name', LOSS_CASES)
def test_zero_for_equal_features_only(name):
    loss, t = build(name), feats(2)
    assert loss(t.clone(), t).item() < 1e-12
    assert loss(t + feats(3), t).item() > 1e-3


@pytest.mark.parametrize('name', LOSS_CASES)
def test_weight(name):
    loss, s, t = build(name), feats(1), feats(2)
    ones = torch.ones(4, 1, 5, 6)
    torch.testing.assert_close(loss(s, t, ones), loss(s, t))
    for scale in (3.0, 1e-4):
        torch.testing.assert_close(loss(s, t, scale * ones), loss(s, t))
    assert loss(s, t, 0 * ones) == 0
    left, right = ones.clone(), ones.clone()
    left[..., 3:], right[..., :3] = 0, 0  # two halves of equal size: their mean is the whole
    torch.testing.assert_close((loss(s, t, left) + loss(s, t, right)) / 2, loss(s, t))


def test_fitnet_looks_inside_the_areas_only():
    s, t, weight = feats(1), feats(2), torch.zeros(4, 1, 5, 6)
    weight[:, :, 1:3, 2:4] = 1
    expected = ((s - t)[:, :, 1:3, 2:4] ** 2).mean()
    torch.testing.assert_close(fitnet_loss(s, t, weight), expected)


@given(st.integers(0, 999), st.floats(0.1, 10), st.floats(-5, 5))
def test_pkd_ignores_scale_and_shift(seed, scale, shift):
    s, t = feats(seed), feats(seed + 1)
    torch.testing.assert_close(pkd_loss(scale * s + shift, t), pkd_loss(s, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('constant', [0.0, 1000.3])
def test_pkd_leaves_a_dead_channel_alone(constant):
    s, t = feats(1).float(), feats(2).float()
    s[:, 0] = constant
    s.requires_grad_()
    loss = pkd_loss(s, t)
    loss.backward()
    assert not s.grad[:, 0].any()
    assert s.grad[:, 1:].abs().sum() > 0
    live = pkd_loss(s[:, 1:], t[:, 1:])
    torch.testing.assert_close(loss, (2 * live + 0.5) / 3)  # r = 0 there, and half of the teacher's unit variance


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_at_ignores_scale_and_sign(seed, scale):
    s, t = feats(seed), feats(seed + 1, channels=7)  # the channels may differ
    torch.testing.assert_close(at_loss(-scale * s, t), at_loss(s, t), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('shape', [(1, 3, 1, 1), (2, 3, 1, 4)])
@pytest.mark.parametrize('name', LOSS_CASES)
def test_tiny_and_constant_maps_stay_finite(name, shape):
    loss = build(name)
    for s in (torch.randn(shape), torch.zeros(shape)):
        s.requires_grad_()
        value = loss(s, torch.ones(shape))
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()


@pytest.mark.parametrize('loss', [fitnet_loss, pkd_loss, at_loss])
def test_shapes_must_fit(loss):
    with pytest.raises(ValueError, match=r'student \(4, 3, 5, 6\), teacher \(4, 3, 5, 5\).*ConvAdapter'):
        loss(feats(1), feats(2)[..., :5])
