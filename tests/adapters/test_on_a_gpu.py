"""Every adapter on a GPU as on the CPU."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map

import mmsokd.adapters
from mmsokd.registry import MODELS

MAP, SMALL, LARGE = (2, 4, 8, 6), (4, 3), (9, 11)
BN, RELU = dict(type='BN'), dict(type='ReLU')
CASES = {  # name -> (arguments, shapes of what is given, what else is given)
    'ConvAdapter': (dict(in_channels=4, out_channels=7, norm_cfg=BN, act_cfg=RELU, resize='bilinear'), MAP, [LARGE]),
    'ConvAdapter down': (dict(in_channels=4, out_channels=7, resize='conv', stride_ratio=0.5), MAP, [SMALL]),
    'ConvAdapter up': (dict(in_channels=4, out_channels=7, resize='conv', stride_ratio=2.0), MAP, [(16, 12)]),
    'SoKDAdapter': (dict(in_channels=4, out_channels=7, resize='nearest'), MAP, [LARGE]),
    'SoKDAdapter unsigned': (dict(in_channels=4, out_channels=7, signed=False), MAP, []),
    'ResizeAdapter': (dict(), MAP, [LARGE]),
    'ResizeAdapter area': (dict(resize='area'), MAP, [SMALL]),
    'ChannelMatching': (dict(in_channels=4, out_channels=7, resize='bilinear'), MAP, [LARGE]),
    'LinearAdapter': (dict(in_channels=4, out_channels=7), (2, 5, 4), []),
    'ReviewKDAdapter': (
        dict(in_channels=(2, 3, 4), out_channels=(5, 3, 6)),
        [(2, 2, 7, 6), (2, 3, 4, 3), (2, 4, 2, 1)],
        [[(7, 6), (5, 4), (3, 3)]],
    ),
    'LearningSimplifier': (dict(num_classes=5, embed_dims=6, num_heads=2), (6, 5), []),
    'LearningSimplifier over classes': (
        dict(num_classes=5, embed_dims=6, num_heads=2, over='classes'),
        (6, 5),
        [],
    ),
}


def test_nobody_is_forgotten():
    assert {name.split()[0] for name in CASES} == set(mmsokd.adapters.__all__)


@pytest.mark.cuda
@pytest.mark.parametrize('name', CASES)
def test_on_a_gpu_as_on_the_cpu(name, monkeypatch):
    """Values and gradients in float32, to 1e-4, without TF32, whose products have 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    cfg, shapes, more = CASES[name]
    built = MODELS.build(dict(type=f'mmsokd.{name.split()[0]}', **cfg))
    given = [torch.randn(shape) for shape in shapes] if isinstance(shapes, list) else torch.randn(shapes)
    found = []
    for device in ('cpu', 'cuda'):
        adapter = copy.deepcopy(built).to(device)
        feats = tree_map(lambda x, device=device: x.detach().to(device).requires_grad_(), given)
        outs = tree_flatten(adapter(feats, *more))[0]
        inputs = [*tree_flatten(feats)[0], *adapter.parameters()]
        grads = torch.autograd.grad(sum(out.square().mean() for out in outs), inputs)
        found.append([x.cpu() for x in (*(out.detach() for out in outs), *grads, *adapter.buffers())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
