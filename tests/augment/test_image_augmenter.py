"""TST's augmenter: the draw, the composition, the 25 scalars."""

import copy
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmsokd.augment.image_augmenter import ImageAugmenter, ImageDraw
from mmsokd.augment.image_ops import IMAGE_OPS
from mmsokd.augment.warping import Canvas, identity, warp


def rig(augmenter, firing=0.0, magnitude=0.0):
    augmenter.probability.fill_(firing)
    augmenter.magnitude.fill_(magnitude)
    return augmenter


def draw_of(*ops, n=2, uniform=0.9, sign=1.0):
    """A draw of these operators; with a uniform of 0.9, what has a probability of more than 0.1 fires."""
    return ImageDraw(ops, torch.full((len(ops),), uniform), torch.full((n, len(ops)), sign), torch.full((n, 2), 0.5))


def strength(name, level):
    op = IMAGE_OPS[name]
    return None if op.lo is None else torch.full((2,), op.lo + level * (op.hi - op.lo))


def gate(rate, uniform, temperature=0.05):
    """A relaxed Bernoulli draw, by hand."""
    score = math.log(rate / (1 - rate)) + math.log(uniform / (1 - uniform))
    return 1 / (1 + math.exp(-score / temperature))


def test_there_are_25_scalars_and_no_parameter():
    augmenter = ImageAugmenter()
    assert sum(value.numel() for value in augmenter.tensors().values()) == 25
    assert not list(augmenter.parameters())
    assert not list(augmenter.buffers())
    rates = augmenter.expected_ops()
    assert {rate for rate, _ in rates.values()} == {0.5}
    assert [name for name, (_, level) in rates.items() if level is None] == ['Equalize', 'Invert', 'Cutout']


def test_changes_are_summed_on_the_original_picture():
    x = torch.rand(2, 3, 12, 14)
    augmenter = rig(ImageAugmenter(), firing=0.3, magnitude=-0.4)
    ops = ('Brightness', 'Rotate', 'Cutout', 'Solarize')
    draw = replace(draw_of(*ops), uniforms=torch.tensor([0.95, 0.4, 0.46, 0.8]))
    rate, level = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(0.4))
    canvas = Canvas.of(x, [(12, 14)] * 2, draw.centre)
    gates = [gate(rate, u) for u in (0.95, 0.4, 0.46, 0.8)]
    assert 0.1 < gates[1] < 0.9
    expected = x.clone()
    for name, p in zip(ops, gates, strict=True):
        expected += p * (IMAGE_OPS[name].apply(x, strength(name, level), canvas) - x)
    found, matrix, _ = augmenter(x, draw)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert matrix is None


def test_warps_are_summed_as_matrices():
    x = torch.rand(2, 3, 12, 14)
    augmenter = rig(ImageAugmenter())
    draw = replace(draw_of('ShearX', 'Invert', 'TranslateY', 'Rotate'), uniforms=torch.tensor([0.9, 0.8, 0.51, 0.7]))
    draw = replace(draw, signs=torch.tensor([[1.0, 1, -1, 1], [-1, 1, 1, -1]]))
    found, matrix, canvas = augmenter(x, draw, together=True)
    p, rad = gate(0.5, 0.51), math.radians(15)
    assert 0.6 < p < 0.75
    for i, (shear, shift, turn) in enumerate([(0.15, -1, 1), (-0.15, 1, -1)]):
        expected = [[math.cos(rad), shear - turn * math.sin(rad), 0], [turn * math.sin(rad), math.cos(rad), 0]]
        expected[1][2] = -p * shift * 0.5 * 150 / 331 * 12
        torch.testing.assert_close(matrix[i], torch.tensor(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, warp(1 - x, matrix, canvas), atol=1e-4, rtol=0)
    assert not matrix.requires_grad
    found, matrix, _ = augmenter(x, draw_of('Invert', 'Cutout', 'Color', 'Equalize'), together=True)
    assert matrix is None


def test_nothing_fires_and_all_fire():
    x = torch.rand(2, 3, 8, 8)
    augmenter = ImageAugmenter(num_ops=14)
    found, _, _ = rig(augmenter, firing=-30.0)(x, augmenter.sample(2))
    assert torch.equal(found, x)
    draw = augmenter.sample(2)
    canvas = Canvas.of(x, [(8, 8)] * 2, draw.centre)
    found, _, _ = rig(augmenter, firing=30.0)(x, draw)
    signs = dict(zip(draw.ops, draw.signs.unbind(1), strict=True))
    expected = x + sum(
        op.apply(x, None if op.lo is None else op.strength(torch.tensor(0.5), signs[name]), canvas) - x
        for name, op in IMAGE_OPS.items()
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert len(set(draw.ops)) == 14


def test_firing_rates_as_mended_and_as_released():
    logits = torch.linspace(-9, 9, 14)
    for firing, expected in (('mended', logits.sigmoid()), ('released', logits.sigmoid().sigmoid())):
        augmenter = ImageAugmenter(firing=firing)
        augmenter.probability.copy_(logits)
        torch.testing.assert_close(augmenter.firing_rates(), expected)
    assert augmenter.firing_rates().min() >= 0.5
    assert augmenter.firing_rates().max() < 0.7311


def test_draws_are_four_of_fourteen_all_alike():
    augmenter = rig(ImageAugmenter(), firing=-1.0)
    draws = [augmenter.sample(3) for _ in range(700)]
    assert {len(set(draw.ops)) for draw in draws} == {4}
    counts = Counter(name for draw in draws for name in draw.ops)
    assert all(150 < counts[name] < 250 for name in IMAGE_OPS)  # of 200
    signs = torch.stack([draw.signs for draw in draws])
    assert set(signs.unique().tolist()) == {-1, 1}
    assert abs(signs.mean()) < 0.05
    fired = torch.cat([augmenter._gates(augmenter.tensors(), draw) for draw in draws])
    assert abs((fired > 0.5).float().mean() - torch.sigmoid(torch.tensor(-1.0))) < 0.03
    assert ((fired < 0.01) | (fired > 0.99)).float().mean() > 0.8  # T = 0.05 is nearly hard


def test_a_draw_is_replayed_and_the_clock_is_saved():
    x, augmenter = torch.rand(2, 3, 8, 8), ImageAugmenter()
    draw = augmenter.sample(2)
    assert torch.equal(augmenter(x, draw)[0], augmenter(x, draw)[0])
    assert str(draw).count('+') == 3
    augmenter.probability.normal_()
    augmenter.magnitude.normal_()
    other = ImageAugmenter()
    other.load_state_dict(copy.deepcopy(augmenter.state_dict()))
    assert torch.equal(other.probability, augmenter.probability)
    assert torch.equal(other.magnitude, augmenter.magnitude)
    assert str(other.sample(2)) == str(augmenter.sample(2)) != str(draw)


def test_gradient_reaches_what_was_drawn():
    x = torch.rand(2, 3, 16, 16) * 0.5 + 0.2
    augmenter = ImageAugmenter()
    names = list(IMAGE_OPS)
    for together in (False, True):
        chi = {name: value.clone().requires_grad_() for name, value in augmenter.tensors().items()}
        draw = draw_of('Color', 'Rotate', 'Cutout', 'Posterize', uniform=0.51)
        out, _, _ = augmenter(x, draw, together=together, chi=chi)
        gradients = torch.autograd.grad((out * torch.rand_like(out)).sum(), list(chi.values()))
        for gradient, learnable in zip(gradients, (draw.ops, ('Color', 'Rotate', 'Posterize')), strict=True):
            assert {names[i] for i in gradient.nonzero().flatten()} == set(learnable)


@pytest.mark.cuda
@pytest.mark.parametrize('together', [False, True])
def test_on_a_gpu_as_on_the_cpu(together):
    """In float32, to 1e-5; the scalars and their gradients stay on the host."""
    x, draw, found = torch.rand(2, 3, 16, 16), replace(draw_of(*IMAGE_OPS), uniforms=torch.linspace(0.3, 0.7, 14)), []
    for device in ('cpu', 'cuda'):
        augmenter = rig(ImageAugmenter(num_ops=14), firing=0.1, magnitude=-0.4)
        chi = {name: value.clone().requires_grad_() for name, value in augmenter.tensors().items()}
        out, matrix, canvas = augmenter(x.to(device), draw, [(16, 16), (10, 12)], together, chi)
        assert {value.device.type for value in (out, canvas.size, canvas.mask)} == {device}
        gradients = torch.autograd.grad(out.square().mean(), list(chi.values()))
        found.append([out.detach().cpu(), matrix.cpu() if together else matrix, *gradients])
    assert all(gradient.count_nonzero() > 8 for gradient in found[0][2:])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_gates_gradient_is_that_of_finite_differences():
    augmenter, draw = ImageAugmenter(temperature=0.5), draw_of('Color', 'Rotate', uniform=0.6)
    logits = torch.randn(14, dtype=torch.float64, requires_grad=True)
    draw = replace(draw, uniforms=draw.uniforms.double())
    assert torch.autograd.gradcheck(lambda p: augmenter._gates(dict(probability=p), draw), (logits,))


def test_blue_comes_first_where_the_network_wants_it():
    x, draw = torch.rand(2, 3, 8, 8), draw_of('Color', 'Contrast', 'Cutout', 'Sharpness')
    found, _, _ = ImageAugmenter(rgb=False)(x.flip(1), draw)
    torch.testing.assert_close(found.flip(1), ImageAugmenter()(x, draw)[0])
    assert not torch.allclose(found, ImageAugmenter()(x.flip(1), draw)[0])


def test_padding_does_not_move():
    x = torch.rand(2, 3, 16, 16)
    shapes = [(16, 16), (10, 12)]
    _, matrix, canvas = ImageAugmenter()(x, draw_of('Rotate', 'Color', 'Invert', 'Cutout'), shapes, together=True)
    assert canvas.mask.sum((1, 2, 3)).tolist() == [256, 120]
    assert not torch.equal(matrix, identity(2, x))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(num_ops=15), 'num_ops: expected at most 14, found 15'),
        (dict(num_ops=0), 'num_ops: expected an integer >= 1'),
        (dict(firing='mend'), "firing: expected one of .* did you mean 'mended'"),
        (dict(temperature=0), 'temperature: expected a number > 0'),
        (dict(prior='learned'), r'prior_checkpoint: expected a file \(tools/fit_tst_priors.py writes it\)'),
        (dict(prior_checkpoint='a.pth'), 'prior_checkpoint: expected a file .* and none beside'),
        (dict(prior='learned', prior_checkpoint='/none.pth'), 'prior_checkpoint: '),
    ],
)
def test_wrong_options_are_told(wrong, message):
    with pytest.raises((ValueError, FileNotFoundError), match=rf'ImageAugmenter\.{message}'):
        ImageAugmenter(**wrong)


def test_grey_pictures_are_refused():
    with pytest.raises(ValueError, match=r'expected pictures \(N, 3, H, W\), found \(1, 1, 8, 8\)'):
        ImageAugmenter()(torch.rand(1, 1, 8, 8), draw_of('Invert', n=1))
