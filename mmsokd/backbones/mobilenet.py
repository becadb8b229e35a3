"""MobileNetV2 for 32 x 32 pictures."""

from collections.abc import Sequence

from torch import Tensor, nn

from mmsokd.backbones.base import HE_FAN_OUT, Chain, conv_norm
from mmsokd.registry import MODELS

# layer by layer: (expansion, channels at full width, blocks, stride of the first)
SETTINGS = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels (also where they are as many), 3x3 depthwise, 1x1 without ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.convs = nn.Sequential(
            conv_norm(in_channels, hidden, 1),
            conv_norm(hidden, hidden, 3, stride, groups=hidden),
            conv_norm(hidden, channels, 1, relu=False),
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        return x + self.convs(x) if self.adds else self.convs(x)


@MODELS.register_module()
class CIFARMobileNetV2(Chain):
    """MobileNetV2 (Sandler et al., arXiv:1801.04381), by default at half width, as in RepDistiller.

    Against the paper's: the blocks of width 24 keep the size, ReLU stands for ReLU6, scaled widths are not rounded to
    multiples of 8, and the first block has its 1x1 expansion, though that expands nothing.

    ========  ====================  ============================================================
    layer     output for 32 x 32    what a tap gives
    ========  ====================  ============================================================
    layer0    16 x 16 x 16          the stem, after its ReLU
    layer1    12 x 16 x 16          blocks of width 16 and 24: a linear bottleneck, signed
    layer2    16 x 8 x 8            blocks of width 32, likewise
    layer3    48 x 4 x 4            blocks of width 64 and 96, likewise
    layer4    160 x 2 x 2           blocks of width 160 and 320, likewise
    layer5    1280 x 2 x 2          the last 1x1 convolution, after its ReLU: what is pooled
    ========  ====================  ============================================================

    The outputs of ``layer1`` to ``layer4`` are RepDistiller's features with and without ``preact`` alike.

    Args:
        widen_factor: scales all channels but the last, which are at least 1280.
        out_indices: which layers' outputs to return.

    Raises:
        ValueError: ``out_indices`` names no layer.
    """

    def __init__(
        self,
        widen_factor: float = 0.5,
        out_indices: Sequence[int] = (-1,),
        init_cfg: dict | None = HE_FAN_OUT,
    ) -> None:
        before = int(32 * widen_factor)
        stages = [conv_norm(3, before, 3, stride=2)]
        for settings in SETTINGS:
            blocks = []
            for expansion, width, count, stride in settings:
                channels = int(width * widen_factor)
                for i in range(count):
                    blocks.append(InvertedResidual(before, channels, stride if i == 0 else 1, expansion))
                    before = channels
            stages.append(nn.Sequential(*blocks))
        stages.append(conv_norm(before, max(1280, int(1280 * widen_factor)), 1))
        super().__init__(stages, out_indices, init_cfg)
