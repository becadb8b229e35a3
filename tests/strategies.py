"""What hypothesis draws."""

import torch
from hypothesis import strategies as st

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@st.composite
def features(draw, max_channels=9):
    """A feature map (N, C, H, W) of any dtype and memory format; a side may be one cell."""
    shape = [draw(st.integers(1, top)) for top in (3, max_channels, 9, 9)]
    form = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    return torch.randn(shape).to(draw(st.sampled_from(DTYPES))).contiguous(memory_format=form)


def memory_format(feat):
    """The format that a result must keep: channels_last where the feature is that alone."""
    return torch.contiguous_format if feat.is_contiguous() else torch.channels_last
