"""ResNets for 32 x 32 pictures."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.backbones.base import HE_FAN_OUT, Chain, blocks_per_stage, conv_norm
from mmsokd.registry import MODELS


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(in_channels, channels, 3, stride)
        self.conv2 = conv_norm(channels, channels, 3, relu=False)
        keeps = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if keeps else conv_norm(in_channels, channels, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


@MODELS.register_module()
class CIFARResNet(Chain):
    """ResNet-20, 32, 56, 110 (He et al., arXiv:1512.03385, sec. 4.2) and the wide 8x4 and 32x4 of RepDistiller.

    Shortcuts that change the shape are 1x1 convolutions, as in RepDistiller (the paper pads with zeros on CIFAR).

    ========  ======================================  ==============================
    layer     output for 32 x 32, widths by default   what a tap gives
    ========  ======================================  ==============================
    layer0    16 x 32 x 32                            the stem, after its ReLU
    layer1    16 x 32 x 32                            stage 1, after its last ReLU
    layer2    32 x 16 x 16                            stage 2, likewise
    layer3    64 x 8 x 8                              stage 3, likewise
    ========  ======================================  ==============================

    The sum before a stage's last ReLU (RepDistiller's ``preact``) is no module's output.

    The ResNet-50 of the benchmark is mmpretrain's own ``ResNet_CIFAR(depth=50, zero_init_residual=False)``.

    Args:
        depth: 6 n + 2, with n blocks a stage.
        widths: channels of the stem and the three stages; (32, 64, 128, 256) makes a "x4" network.
        out_indices: which layers' outputs to return.

    Raises:
        ValueError: there is no such depth, ``widths`` are not four, or ``out_indices`` names no layer.
    """

    def __init__(
        self,
        depth: int,
        widths: Sequence[int] = (16, 16, 32, 64),
        out_indices: Sequence[int] = (-1,),
        init_cfg: dict | None = HE_FAN_OUT,
    ) -> None:
        n = blocks_per_stage('CIFARResNet.depth', depth, 2)
        if len(widths) != 4:
            raise ValueError(f'CIFARResNet.widths: expected those of the stem and three stages, found {widths!r}')
        stages = [conv_norm(3, widths[0], 3)]
        for before, width, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
            rest = [BasicBlock(width, width, 1) for _ in range(n - 1)]
            stages.append(nn.Sequential(BasicBlock(before, width, stride), *rest))
        super().__init__(stages, out_indices, init_cfg)
