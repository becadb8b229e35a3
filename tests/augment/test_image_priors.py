"""TST's learned priors: the tool fits them, and the augmenter takes them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmsokd.augment.image_augmenter import ImageAugmenter
from mmsokd.augment.image_ops import IMAGE_OPS
from mmsokd.augment.image_priors import IMITATED, build_prior
from tests.augment.test_image_augmenter import draw_of, rig
from tests.augment.test_image_ops import canvas_of, picture

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/fit_tst_priors.py'


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(TOOL))


def pictures(n=16):
    arrays = torch.stack([torch.from_numpy(picture(16, 16, seed)) for seed in range(n)])
    return arrays.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize('name', IMITATED)
def test_targets_are_the_exact_operators(tool, name):
    """torchvision's, which the networks are fitted to, at our strength: the table's ranges and signs."""
    x, op = pictures(2), IMAGE_OPS[name]
    v = None if op.lo is None else torch.full((2,), dict(Posterize=3.0, Solarize=0.4).get(name, -0.7 * op.hi))
    exact = tool['imitate'](name, op.function, x, v)
    targets = torch.stack([tool['target'](name, p, 0.0 if v is None else float(v[0])) for p in x])
    torch.testing.assert_close(exact, targets, atol=4e-4, rtol=0)


@pytest.mark.parametrize('name', ['Brightness', 'TranslateX'])
def test_fitting_learns(tool, name):
    x, v = pictures(), torch.linspace(-1, 1, 16) * IMAGE_OPS[name].hi
    exact = tool['imitate'](name, IMAGE_OPS[name].function, x, v)
    errors = [
        F.mse_loss(tool['imitate'](name, prior, x, v), exact).item()
        for prior in (build_prior(name), tool['fit'](name, x, epochs=60, batch=8, lr=1e-2, decay=1.0))
    ]
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize('name', ['Color', 'Sharpness', 'Posterize'])
def test_fitted_priors_react_to_their_strength(tool, name):
    """Those of the authors' release hardly do: what is left of the operator's own reaction would be all of it."""
    x, hi = pictures(), IMAGE_OPS[name].hi
    torch.manual_seed(0)
    prior = tool['fit'](name, x, epochs=60, batch=8, lr=1e-2, decay=1.0)
    ends = [torch.full((16,), value) for value in ((-hi, hi) if IMAGE_OPS[name].signed else (0.0, hi))]

    def reaction(function):
        low, high = (tool['imitate'](name, function, x, v) for v in ends)
        return (high - low).detach()

    exact = reaction(IMAGE_OPS[name].function)
    left = [
        (reaction(function) - exact).square().sum() / exact.square().sum() for function in (prior, build_prior(name))
    ]
    assert left[0] < 0.6
    assert left[1] == 1


@pytest.mark.cuda
@pytest.mark.parametrize('name', IMITATED)
def test_on_a_gpu_as_on_the_cpu(name, monkeypatch):
    """In float32, to 1e-4, without TF32, whose products have 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    op, found = IMAGE_OPS[name], []
    op = op._replace(function=build_prior(name))
    for device in ('cpu', 'cuda'):
        op.function.to(device)
        x = pictures(2).to(device).requires_grad_()
        v = None if op.lo is None else torch.tensor([0.3, -0.2], device=device, requires_grad=True)
        out = op.apply(x, v, canvas_of(x))
        grads = torch.autograd.grad(out.square().mean(), [x] if v is None else [x, v])
        found.append([value.cpu() for value in (out.detach(), *grads)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_tool_writes_what_the_augmenter_reads(tmp_path):
    for i, array in enumerate(range(8)):
        Image.fromarray(picture(20, 24, array)).save(tmp_path / f'{i}.png')
    out = tmp_path / 'priors.pth'
    command = [
        sys.executable,
        str(TOOL),
        str(tmp_path),
        str(out),
        '--size',
        '16',
        '--warp-epochs=1',
        '--color-epochs=1',
    ]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    augmenter = rig(ImageAugmenter(prior='learned', prior_checkpoint=out), firing=5.0)
    assert not list(augmenter.parameters())
    assert list(augmenter.state_dict()) == ['_extra_state']
    x = pictures(2)
    state = torch.load(out)
    for name in ('Color', 'Rotate'):
        chi = {key: value.clone().requires_grad_() for key, value in augmenter.tensors().items()}
        found, _, canvas = augmenter(x, draw_of(name), chi=chi)
        prior = build_prior(name)
        prior.load_state_dict(state[name])
        op = IMAGE_OPS[name]._replace(function=prior)
        expected = op.apply(x, torch.full((2,), 0.5 * op.hi), canvas)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        gradient = torch.autograd.grad(found.square().sum(), chi['magnitude'])[0]
        assert gradient.abs().max() > 0
    found, matrix, _ = augmenter(x, draw_of('Rotate', 'Invert'), together=True)
    assert matrix.shape == (2, 2, 3)


def test_another_file_is_refused(tmp_path):
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"prior_checkpoint: expected the priors of .* found \['weight'\]"):
        ImageAugmenter(prior='learned', prior_checkpoint=tmp_path / 'a.pth')


def resized(state):
    state['layers.4.weight'] = torch.zeros(3, 16, 1, 1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (resized, r'layers\.4\.weight: expected \(6, 16, 1, 1\) as ColorPrior has it, found \(3, 16, 1, 1\)'),
        (lambda state: state.pop('linear.weight'), r'linear\.weight: expected \(6, 3, 3, 3\) as .* found none'),
        (lambda state: state.update(more=torch.zeros(2)), r'more: expected none as .* found \(2,\)'),
        (lambda state: state.clear(), r'layers\.0\.bias: expected \(16,\) as .* found none'),
    ],
)
def test_a_file_of_an_older_network_is_told(tmp_path, change, message):
    """In one line of ours: what is not as expected, and what to do."""
    priors = {name: build_prior(name).state_dict() for name in IMITATED}
    change(priors['Color'])
    torch.save(priors, tmp_path / 'old.pth')
    message = rf"prior_checkpoint: .*old\.pth, Color's {message}, as in a file of an older mmsokd; fit the priors again"
    with pytest.raises(ValueError, match=message) as caught:
        ImageAugmenter(prior='learned', prior_checkpoint=tmp_path / 'old.pth')
    assert 'state_dict' not in str(caught.value)  # as PyTorch's own message has it


def test_what_are_no_weights_is_told(tmp_path):
    torch.save(dict.fromkeys(IMITATED, 3), tmp_path / 'odd.pth')
    with pytest.raises(ValueError, match=r"prior_checkpoint: .*odd\.pth, Brightness's .* found none, .* priors again"):
        ImageAugmenter(prior='learned', prior_checkpoint=tmp_path / 'odd.pth')
