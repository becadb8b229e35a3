import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mmsokd.augment import FEATURE_OPS
from mmsokd.augment.feature_ops import Randomness, rescaled_channel_drop
from tests.strategies import features, memory_format

AFFINE = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')


def randomness(n, c, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, 2), (c,), (c,), (n, c)
    return Randomness(
        *(torch.rand(s, generator=generator) for s in shapes), torch.randn(n, c, h, w, generator=generator)
    )


def run(name, feat, v, rand=None):
    v = torch.as_tensor(v, dtype=torch.float64 if feat.dtype == torch.float64 else torch.float32)
    return FEATURE_OPS[name].function(feat, v.expand(len(feat)), rand or randomness(*feat.shape))


def feature(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


# ---- against numpy and scipy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('cells', [-2, -1, 1, 3])
def test_translate_by_whole_cells(cells):
    feat = feature(2, 3, 5, 8)
    expected_x, expected_y = np.zeros(feat.shape), np.zeros(feat.shape)
    for y in range(5):
        for x in range(8):
            if 0 <= x + cells < 8:
                expected_x[:, :, y, x] = feat[:, :, y, x + cells]
            if 0 <= y + cells < 5:
                expected_y[:, :, y, x] = feat[:, :, y + cells, x]
    torch.testing.assert_close(run('TranslateX', feat, cells / 8), torch.from_numpy(expected_x))
    torch.testing.assert_close(run('TranslateY', feat, cells / 5), torch.from_numpy(expected_y))


def scipy_warp(feat, matrix):
    """``matrix`` maps an output cell, (row, column) from the centre in cells, to the one it reads."""
    out = np.empty(feat.shape)
    centre = (np.array(feat.shape[2:]) - 1) / 2
    for n, c in np.ndindex(*feat.shape[:2]):
        offset = centre - matrix @ centre
        out[n, c] = ndimage.affine_transform(feat[n, c].numpy(), matrix, offset, order=1, mode='grid-constant')
    return torch.from_numpy(out)


@pytest.mark.parametrize('v', [-0.3, 0.2])
def test_shear_against_scipy(v):
    feat = feature(1, 2, 6, 9)
    torch.testing.assert_close(run('ShearX', feat, v), scipy_warp(feat, np.array([[1, 0], [v * 9 / 6, 1]])))
    torch.testing.assert_close(run('ShearY', feat, v), scipy_warp(feat, np.array([[1, v * 6 / 9], [0, 1]])))


@pytest.mark.parametrize('degrees', [-30.0, 10.0, 25.0])
@pytest.mark.parametrize('size', [(7, 7), (5, 12), (12, 5)])
def test_rotate_against_scipy(degrees, size):
    feat, a = feature(1, 2, *size), math.radians(degrees)
    matrix = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    torch.testing.assert_close(run('Rotate', feat, degrees), scipy_warp(feat, matrix))


def test_rotate_by_a_right_angle():
    feat = feature(2, 3, 6, 6)
    torch.testing.assert_close(run('Rotate', feat, 90.0), torch.rot90(feat, 1, (2, 3)))


def test_samples_have_their_own_strength():
    feat = feature(2, 1, 4, 4)
    out = run('TranslateX', feat, torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(out[0], feat[0])
    torch.testing.assert_close(out[1, :, :, :3], feat[1, :, :, 1:])


@pytest.mark.parametrize('name', AFFINE)
def test_affine_identity_at_half(name):
    feat = feature(2, 3, 5, 7)
    v = FEATURE_OPS[name].strength(torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(run(name, feat, v), feat)


@pytest.mark.parametrize('name', ['Cutout', 'Noise', 'ChannelShuffle', 'ChannelDrop'])
def test_strength_zero_is_exactly_the_identity(name):
    feat = feature(2, 8, 5, 7)
    assert torch.equal(run(name, feat, 0.0), feat)


# ---- what each of the others promises ------------------------------------------------------------------------------


@pytest.mark.parametrize(('size', 'v'), [((20, 30), 0.2), ((8, 8), 0.01), ((1, 16), 0.2), ((3, 40), 0.13)])
def test_cutout_zeroes_one_rectangle_a_sample(size, v):
    feat, rand = torch.ones(6, 2, *size), randomness(6, 2, *size)
    holes = run('Cutout', feat, v, rand) == 0
    sides = [max(1, round(v * s)) for s in size]
    corners = set()
    for sample in holes:
        assert torch.equal(sample[0], sample[1])
        rows, columns = np.nonzero(sample[0].numpy())
        assert len(rows) == sides[0] * sides[1]
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == tuple(sides)
        corners.add((rows.min(), columns.min()))
    assert len(corners) > 1


def test_cutout_lies_at_its_centre_and_is_moved_inside():
    feat, rand = torch.ones(3, 1, 10, 10), randomness(3, 1, 10, 10)
    rand = rand._replace(centre=torch.tensor([[0.5, 0.3], [0.0, 0.0], [1.0, 1.0]]))
    holes = run('Cutout', feat, 0.2, rand)[:, 0] == 0
    boxes = [(r.min(), r.max(), c.min(), c.max()) for r, c in (np.nonzero(h.numpy()) for h in holes)]
    assert boxes == [(2, 3, 4, 5), (0, 1, 0, 1), (8, 9, 8, 9)]


def test_cutouts_gradient_is_that_of_the_soft_rectangle():
    feat, rand = torch.ones(1, 1, 20, 20, dtype=torch.float64), randomness(1, 1, 20, 20)
    rand = rand._replace(centre=torch.tensor([[0.5, 0.5]]))
    v = torch.tensor([0.17], dtype=torch.float64, requires_grad=True)  # 3.4 cells: a hard 3, a soft edge
    (grad,) = torch.autograd.grad(FEATURE_OPS['Cutout'].function(feat, v, rand).sum(), v)

    # The soft side is one of 3.4 cells about the hard one's centre: two cells at distance 2 cover 3.4/2 + 0.5 - 2 each.
    def soft_area(side):
        cover = [min(max(side * 20 / 2 + 0.5 - d, 0), 1) for d in (0, 1, 1, 2, 2)]
        return sum(cover) ** 2

    slope = (soft_area(0.17 + 1e-6) - soft_area(0.17 - 1e-6)) / 2e-6
    torch.testing.assert_close(grad.item(), -slope, rtol=1e-6, atol=1e-6)


def test_noise_is_relative_to_each_channels_std():
    feat = feature(2, 3, 9, 11) * torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[:, None, None] + 5
    rand = randomness(*feat.shape)
    std = np.std(feat.numpy(), axis=(2, 3), keepdims=True)
    expected = feat.numpy() + 0.07 * std * rand.noise.double().numpy()
    torch.testing.assert_close(run('Noise', feat, 0.07, rand), torch.from_numpy(expected))


@given(c=st.integers(1, 40), m=st.floats(0, 1), seed=st.integers(0, 999))
def test_shuffle_permutes_a_fraction_inside_groups(c, m, seed):
    feat = torch.arange(c, dtype=torch.float32)[None, :, None, None].expand(2, c, 2, 3)
    out = run('ChannelShuffle', feat, m, randomness(2, c, 2, 3, seed))[0, :, 0, 0].long().tolist()
    assert sorted(out) == list(range(c))
    groups = max(1, min(4, c // 2))
    assert all(a * groups // c == b * groups // c for a, b in enumerate(out))
    assert sum(a != b for a, b in enumerate(out)) <= round(np.float32(m) * c)


def test_shuffle_moves_most_at_full_strength():
    feat = torch.arange(256.0)[None, :, None, None].expand(1, 256, 1, 1)
    assert (run('ChannelShuffle', feat, 1.0) != feat).float().mean() > 0.9


@pytest.mark.parametrize('v', [0.1, 0.5])
def test_drop_keeps_whole_channels_at_its_chance(v):
    feat = torch.ones(50, 200, 2, 2)
    out = run('ChannelDrop', feat, v, randomness(50, 200, 2, 2))
    kept = out.mean(dim=(2, 3))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean() - (1 - v)) < 5 * math.sqrt(v * (1 - v) / 10_000)
    assert not torch.equal(kept[0], kept[1])


def test_rescaled_drop_keeps_the_mean():
    feat, rand = feature(4, 8, 2, 3), randomness(4, 8, 2, 3)
    plain = run('ChannelDrop', feat, 0.3, rand)
    out = rescaled_channel_drop(feat, torch.full((4,), 0.3, dtype=torch.float64), rand)
    torch.testing.assert_close(out, plain / 0.7)


# ---- for every op --------------------------------------------------------------------------------------------------


@given(name=st.sampled_from(sorted(FEATURE_OPS)), feat=features(), m=st.floats(0, 1))
def test_shape_dtype_and_format_stay(name, feat, m):
    before, rand = feat.clone(), randomness(*feat.shape)
    v = FEATURE_OPS[name].strength(torch.tensor(m))
    out = run(name, feat, v, rand)
    assert out.shape == feat.shape
    assert out.dtype == feat.dtype
    assert out.is_contiguous(memory_format=memory_format(feat))
    assert out.isfinite().all()
    assert torch.equal(feat, before)
    assert torch.equal(out, run(name, feat, v, rand))  # all randomness is an argument


@pytest.mark.parametrize('name', sorted(n for n, op in FEATURE_OPS.items() if op.differentiable and n != 'Cutout'))
@pytest.mark.parametrize('size', [(5, 7), (1, 6)])
def test_derivative_for_the_strength_and_the_feature(name, size):
    feat = feature(2, 2, *size).requires_grad_()
    rand = randomness(2, 2, *size)
    op = FEATURE_OPS[name]
    v = op.strength(torch.tensor([0.313, 0.671], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, s: op.function(f, s, rand), (feat, v))


@pytest.mark.parametrize('name', sorted(FEATURE_OPS))
def test_autocast_changes_nothing(name):
    feat, rand = feature(2, 8, 6, 5, dtype=torch.float32), randomness(2, 8, 6, 5)
    v = FEATURE_OPS[name].strength(torch.tensor(0.8))
    plain = run(name, feat, v, rand)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(run(name, feat, v, rand), plain, rtol=0, atol=0)


@pytest.mark.parametrize('name', sorted(FEATURE_OPS))
def test_compiles(name):
    feat, rand = feature(2, 8, 6, 5, dtype=torch.float32), randomness(2, 8, 6, 5)
    op = FEATURE_OPS[name]
    v = op.strength(torch.tensor([0.8, 0.2]))
    torch._dynamo.reset()
    compiled = torch.compile(op.function, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(feat, v, rand), op.function(feat, v, rand))


@pytest.mark.cuda
@pytest.mark.parametrize('name', sorted(FEATURE_OPS))
def test_on_a_gpu_as_on_the_cpu(name):
    feat, rand = feature(2, 8, 6, 5), randomness(2, 8, 6, 5)
    op = FEATURE_OPS[name]
    strength = op.strength(torch.tensor([0.8, 0.2], dtype=torch.float64))
    found = []
    for device in ('cpu', 'cuda'):
        inputs = [x.detach().to(device).requires_grad_() for x in (feat, strength)]
        out = op.function(*inputs, Randomness(*(x.to(device) for x in rand)))
        grads = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        found.append([x.cpu() for x in (out.detach(), *grads) if x is not None])
    torch.testing.assert_close(*found)


def test_table():
    assert list(FEATURE_OPS) == [*AFFINE, 'Cutout', 'Noise', 'ChannelShuffle', 'ChannelDrop']
    ranges = {name: (op.lo, op.hi) for name, op in FEATURE_OPS.items()}
    assert ranges['Rotate'] == (-30, 30)
    assert ranges['TranslateX'] == ranges['TranslateY'] == (-0.45, 0.45)
    assert ranges['ShearX'] == ranges['ShearY'] == (-0.3, 0.3)
    assert [ranges[n] for n in ('Cutout', 'Noise', 'ChannelDrop')] == [(0, 0.2), (0, 0.1), (0, 0.5)]
