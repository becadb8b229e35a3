"""Wide residual networks."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.backbones.base import HE_FAN_OUT, Chain, blocks_per_stage
from mmsokd.registry import MODELS


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions.

    Where the width changes, the shortcut is a 1x1 convolution of what the first ReLU gives.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        active = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


@MODELS.register_module()
class WideResNet(Chain):
    """WRN-d-k (Zagoruyko and Komodakis, arXiv:1605.07146) without dropout, as in RepDistiller.

    With k for ``widen_factor``:

    ========  ====================  ====================================================================
    layer     output for 32 x 32    what a tap gives
    ========  ====================  ====================================================================
    layer0    16 x 32 x 32          the first convolution, signed
    layer1    16 k x 32 x 32        stage 1's sum, signed: its BatchNorm and ReLU open the next stage
    layer2    32 k x 16 x 16        stage 2, likewise
    layer3    64 k x 8 x 8          stage 3, likewise: its BatchNorm and ReLU are ``layer4``
    layer4    64 k x 8 x 8          after the last BatchNorm and ReLU: what is pooled
    ========  ====================  ====================================================================

    RepDistiller's ``preact`` features, after a BatchNorm and before its ReLU, are the outputs of
    ``layer2.0.norm1``, ``layer3.0.norm1`` and ``layer4.0``.

    Args:
        depth: 6 n + 4, with n blocks a stage.
        widen_factor: k, an integer.
        out_indices: which layers' outputs to return.

    Raises:
        ValueError: there is no such depth, or ``out_indices`` names no layer.
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int,
        out_indices: Sequence[int] = (-1,),
        init_cfg: dict | None = HE_FAN_OUT,
    ) -> None:
        n = blocks_per_stage('WideResNet.depth', depth, 4)
        widths = [16, *(width * widen_factor for width in (16, 32, 64))]
        stages = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
        for before, width, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
            rest = [PreActBlock(width, width, 1) for _ in range(n - 1)]
            stages.append(nn.Sequential(PreActBlock(before, width, stride), *rest))
        stages.append(nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU()))
        super().__init__(stages, out_indices, init_cfg)
