import re

import pytest
import torch
from torch import nn

from mmsokd.adapters import ConvAdapter, ResizeAdapter, SoKDAdapter


@pytest.mark.parametrize('cls', [ConvAdapter, SoKDAdapter])
@pytest.mark.parametrize('resize', ['bilinear', 'nearest', 'area'])
def test_width_and_size(cls, resize):
    out = cls(4, 7, resize=resize)(torch.randn(2, 4, 8, 6), (5, 9))
    assert out.shape == (2, 7, 5, 9)


@pytest.mark.parametrize('cls', [ConvAdapter, SoKDAdapter])
@pytest.mark.parametrize(
    ('ratio', 'size'), [(0.5, (4, 3)), (0.25, (2, 2)), (2.0, (16, 12)), (1.0, (8, 6)), (0.5, (4, 4))]
)
def test_resize_by_convolution(cls, ratio, size):
    out = cls(4, 7, resize='conv', stride_ratio=ratio)(torch.randn(2, 4, 8, 6), size)
    assert out.shape == (2, 7, *size)


@pytest.mark.parametrize('cls', [ConvAdapter, SoKDAdapter])
def test_another_size_without_a_policy_is_refused(cls):
    with pytest.raises(ValueError, match=r'resize: .*found \(8, 6\) for the student and \(4, 3\)'):
        cls(4, 7)(torch.randn(2, 4, 8, 6), (4, 3))
    with pytest.raises(ValueError, match=r"resize: expected one of .*did you mean 'bilinear'"):
        cls(4, 7, resize='bilinar')


@pytest.mark.parametrize('cls', [ConvAdapter, SoKDAdapter])
@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(norm_cfg=dict(type='GN', num_groups=4)), 'norm_cfg.num_groups: expected a divisor of the 7 channels'),
        (dict(norm_cfg=dict(type='GN', num_groups=0)), 'norm_cfg.num_groups: expected an integer >= 1, found 0'),
        (dict(norm_cfg=dict(type='GN')), 'norm_cfg.num_groups: expected an integer >= 1, found None'),
        (dict(norm_cfg='BN'), "norm_cfg: expected None or a dict with 'type', found 'BN'"),
        (dict(resize='conv', stride_ratio=0.0), 'stride_ratio: expected a number > 0, found 0.0'),
        (dict(resize='conv', stride_ratio=1.5), "resize: expected another than 'conv' where"),
        (dict(resize='conv', stride_ratio=0.4), "resize: expected another than 'conv' where"),
        (dict(resize='conv', stride_ratio=1.25), "resize: expected another than 'conv' where"),
        (dict(resize='conv', stride_ratio=0.8), "resize: expected another than 'conv' where"),
    ],
)
def test_what_cannot_be_built_is_refused(cls, wrong, message):
    with pytest.raises(ValueError, match=re.escape(f'{cls.__name__}.{message}')):
        cls(4, 7, **wrong)


@pytest.mark.parametrize('size', [2, 0, -1, (3, 3), 3.0])
def test_kernels_that_do_not_keep_the_size_are_refused(size):
    with pytest.raises(ValueError, match=rf'ConvAdapter\.kernel_size: expected an .*found {re.escape(str(size))}'):
        ConvAdapter(4, 7, kernel_size=size)


@pytest.mark.parametrize('resize', ['conv', None])
def test_resize_adapter_only_interpolates(resize):
    with pytest.raises(ValueError, match=r"ResizeAdapter\.resize: expected one of \['bilinear', 'nearest', 'area'\]"):
        ResizeAdapter(resize=resize)


def test_a_signed_features_last_conv_has_no_norm_to_divide():
    adapter = SoKDAdapter(4, 7, feat_channels=8, norm_cfg=dict(type='GN', num_groups=4))
    assert adapter(torch.randn(1, 4, 3, 3)).shape == (1, 7, 3, 3)


def test_conv_adapter_is_a_linear_map_of_channels():
    adapter, feat = ConvAdapter(4, 7), torch.randn(2, 4, 3, 5)
    weight, bias = adapter.conv.conv.weight[:, :, 0, 0], adapter.conv.conv.bias
    torch.testing.assert_close(adapter(feat), torch.einsum('oc,nchw->nohw', weight, feat) + bias[:, None, None])


def test_sokd_adapter_has_three_convs_and_reaches_signed_features():
    signed, positive = SoKDAdapter(4, 7), SoKDAdapter(4, 7, signed=False)
    for adapter, norms in ((signed, 2), (positive, 3)):
        assert sum(isinstance(m, nn.Conv2d) for m in adapter.modules()) == 3
        assert sum(isinstance(m, nn.BatchNorm2d) for m in adapter.modules()) == norms
    feat = torch.randn(2, 4, 6, 6)
    assert signed(feat).min() < 0
    assert positive(feat).min() >= 0


@pytest.mark.parametrize('norm', [dict(type='GN', num_groups=4), dict(type='SyncBN'), None])
def test_norm_layers(norm):
    adapter = SoKDAdapter(4, 8, norm_cfg=norm).eval()
    assert adapter(torch.randn(1, 4, 1, 1)).shape == (1, 8, 1, 1)


def test_width_of_the_inner_convs():
    adapter = SoKDAdapter(4, 32, feat_channels=8)
    assert [m.out_channels for m in adapter.modules() if isinstance(m, nn.Conv2d)] == [8, 8, 32]
