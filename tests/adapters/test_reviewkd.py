import numpy as np
import pytest
import torch

from mmsokd.adapters import ReviewKDAdapter
from tests.losses.common import arrays, assert_agrees, feats, relative_error, shake
from tests.reference import dense as reference

CHANNELS, OUT = (2, 3, 4), (5, 3, 6)
SHAPES, SIZES = [(7, 6), (4, 3), (2, 1)], [(7, 6), (5, 4), (3, 3)]  # odd sides; the teacher's coarse maps are larger


def levels(seed=0, n=2):
    return [feats(seed + i, (n, c, *size)) for i, (c, size) in enumerate(zip(CHANNELS, SHAPES, strict=True))]


def weights(adapter):
    found = []
    for level in adapter.levels:
        convs = dict(reduce=level.reduce.conv, expand=level.expand.conv, attention=level.attention)
        found.append({name: arrays(conv.weight, conv.bias) for name, conv in convs.items() if conv is not None})
    return found


def test_against_the_slow_twin():
    adapter, feats_ = shake(ReviewKDAdapter(CHANNELS, OUT, norm_cfg=None)), levels()
    out = adapter(feats_, SIZES)
    assert [tuple(x.shape) for x in out] == [(2, c, *size) for c, size in zip(OUT, SIZES, strict=True)]
    one_by_one = [reference.review([x[i].numpy() for x in feats_], SIZES, weights(adapter)) for i in range(2)]
    expected = [np.stack(level) for level in zip(*one_by_one, strict=True)]
    assert_agrees('ReviewKDAdapter', [relative_error(x, y) for x, y in zip(out, expected, strict=True)])


def test_gradient_against_finite_differences():
    adapter = shake(ReviewKDAdapter(CHANNELS, OUT, mid_channels=2, norm_cfg=None))
    inputs = [x.requires_grad_() for x in levels(n=1)]
    parameters = list(adapter.parameters())
    mix = [feats(9 + i, (1, c, *size)) for i, (c, size) in enumerate(zip(OUT, SIZES, strict=True))]

    def value(*x):
        return sum((m * out).sum() for m, out in zip(mix, adapter(x[:3], SIZES), strict=True))

    assert torch.autograd.gradcheck(value, (*inputs, *parameters), fast_mode=True)


def test_only_deeper_levels_are_reviewed():
    adapter, feats_ = shake(ReviewKDAdapter(CHANNELS, OUT, norm_cfg=None)), levels()
    for changed in range(3):
        other = [x + (i == changed) for i, x in enumerate(feats_)]
        pairs = zip(adapter(feats_, SIZES), adapter(other, SIZES), strict=True)
        assert [not torch.equal(a, b) for a, b in pairs] == [i <= changed for i in range(3)]


@pytest.mark.parametrize('norm', [dict(type='BN'), dict(type='SyncBN'), dict(type='GN', num_groups=2), None])
def test_norm_layers_and_signed_outputs(norm):
    adapter = ReviewKDAdapter((2, 4), (6, 8), norm_cfg=norm).eval()
    out = adapter([torch.randn(1, 2, 2, 2), torch.randn(1, 4, 1, 1)], [(2, 2), (1, 1)])
    assert [tuple(x.shape) for x in out] == [(1, 6, 2, 2), (1, 8, 1, 1)]
    assert min(x.min() for x in out) < 0


def test_a_single_level_has_nothing_to_fuse():
    adapter = ReviewKDAdapter([4], [6])
    assert adapter.levels[0].attention is None
    assert adapter([torch.randn(2, 4, 3, 3)], [(3, 3)])[0].shape == (2, 6, 3, 3)


def test_middle_width():
    assert ReviewKDAdapter((4, 8), (4, 4)).levels[0].reduce.conv.out_channels == 8
    assert ReviewKDAdapter((4, 600), (4, 4)).levels[0].reduce.conv.out_channels == 512


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match=r'ReviewKDAdapter\.norm_cfg\.num_groups: .*divisor of the 5 channels, found 2'
    ):
        ReviewKDAdapter((2, 4), (6, 5), norm_cfg=dict(type='GN', num_groups=2))


@pytest.mark.parametrize('width', [0, -3, 2.0])
def test_middle_width_is_a_positive_integer(width):
    with pytest.raises(ValueError, match=rf'ReviewKDAdapter\.mid_channels: expected an integer >= 1, found {width}'):
        ReviewKDAdapter((2, 4), (6, 5), mid_channels=width)
