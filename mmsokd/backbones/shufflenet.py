"""ShuffleNets for 32 x 32 pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.backbones.base import Chain, channel_shuffle, conv_norm
from mmsokd.registry import MODELS

GROUPS = 3
STEM = 24  # channels


class GroupUnit(nn.Module):
    """ShuffleNet's unit: grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; a stride of 2 concatenates a pooled input.

    As in RepDistiller the depthwise convolution has a ReLU, which the paper's has not.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        made = channels - in_channels if stride == 2 else channels
        hidden = made // 4
        self.groups = 1 if in_channels == STEM else GROUPS  # too few channels to group
        self.conv1 = conv_norm(in_channels, hidden, 1, groups=self.groups)
        self.conv2 = conv_norm(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = conv_norm(hidden, made, 1, groups=GROUPS, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = self.conv3(self.conv2(channel_shuffle(self.conv1(x), self.groups)))
        if self.stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return F.relu(out + x)


@MODELS.register_module()
class CIFARShuffleNetV1(Chain):
    """ShuffleNet (Zhang et al., arXiv:1707.01083) with three groups, as in RepDistiller: a 1x1 stem and no max pooling.

    ========  ====================  ==============================
    layer     output for 32 x 32    what a tap gives
    ========  ====================  ==============================
    layer0    24 x 32 x 32          the stem, after its ReLU
    layer1    240 x 16 x 16         stage 1, after its last ReLU
    layer2    480 x 8 x 8           stage 2, likewise
    layer3    960 x 4 x 4           stage 3, likewise
    ========  ====================  ==============================

    The weights start as PyTorch's layers do, as in RepDistiller.

    Args:
        out_indices: which layers' outputs to return.

    Raises:
        ValueError: ``out_indices`` names no layer.
    """

    def __init__(self, out_indices: Sequence[int] = (-1,), init_cfg: dict | None = None) -> None:
        stages = [conv_norm(3, STEM, 1)]
        before = STEM
        for channels, count in ((240, 4), (480, 8), (960, 4)):
            rest = [GroupUnit(channels, channels, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(GroupUnit(before, channels, 2), *rest))
            before = channels
        super().__init__(stages, out_indices, init_cfg)


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit: the second half of the channels goes through 1x1, 3x3 depthwise, 1x1; then a shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.right = _branch(half, half, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        left, right = x.chunk(2, 1)
        return channel_shuffle(torch.cat([left, self.right(right)], 1), 2)


class DownUnit(nn.Module):
    """ShuffleNetV2's unit of stride 2: both branches see all channels, and each gives half of the output's."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left = nn.Sequential(
            conv_norm(in_channels, in_channels, 3, 2, groups=in_channels, relu=False), conv_norm(in_channels, half, 1)
        )
        self.right = _branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / 2, W / 2)."""
        return channel_shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def _branch(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(in_channels, channels, 1),
        conv_norm(channels, channels, 3, stride, groups=channels, relu=False),
        conv_norm(channels, channels, 1),
    )


@MODELS.register_module()
class CIFARShuffleNetV2(Chain):
    """ShuffleNetV2 1x (Ma et al., arXiv:1807.11164), as in RepDistiller: a 1x1 stem and no max pooling.

    ========  ====================  =========================================================
    layer     output for 32 x 32    what a tap gives
    ========  ====================  =========================================================
    layer0    24 x 32 x 32          the stem, after its ReLU
    layer1    116 x 16 x 16         stage 1, after its last ReLU and shuffle
    layer2    232 x 8 x 8           stage 2, likewise
    layer3    464 x 4 x 4           stage 3, likewise
    layer4    1024 x 4 x 4          the last 1x1 convolution, after its ReLU: what is pooled
    ========  ====================  =========================================================

    A stage is a unit of stride 2 and three, seven, and three more. The weights start as PyTorch's layers
    do, as in RepDistiller.

    Args:
        out_indices: which layers' outputs to return.

    Raises:
        ValueError: ``out_indices`` names no layer.
    """

    def __init__(self, out_indices: Sequence[int] = (-1,), init_cfg: dict | None = None) -> None:
        stages = [conv_norm(3, STEM, 1)]
        before = STEM
        for channels, count in ((116, 3), (232, 7), (464, 3)):
            stages.append(nn.Sequential(DownUnit(before, channels), *(SplitUnit(channels) for _ in range(count))))
            before = channels
        stages.append(conv_norm(before, 1024, 1))
        super().__init__(stages, out_indices, init_cfg)
