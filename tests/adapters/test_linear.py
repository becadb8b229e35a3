"""The linear adapter against its formula."""

import pytest
import torch

from mmsokd.registry import MODELS


@pytest.mark.parametrize('shape', [(3, 4), (3, 5, 4)])
def test_maps_each_vector_by_itself(shape):
    adapter = MODELS.build(dict(type='mmsokd.LinearAdapter', in_channels=4, out_channels=6)).double()
    feat = torch.randn(shape, dtype=torch.float64)
    weight, bias = adapter.linear.weight, adapter.linear.bias
    expected = torch.stack([weight @ row + bias for row in feat.reshape(-1, 4)]).view(*shape[:-1], 6)
    torch.testing.assert_close(adapter(feat, (1, 1)), expected)
