"""What the networks of the zoo share."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

# RepDistiller draws from N(0, 2 / (k * k * C_out)), which is He et al.'s rule for fan-out; biases start at zero.
HE_FAN_OUT = dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu')


class Chain(BaseModule):
    """A backbone of stages that run one after the other, ``layer0``, ``layer1``, ...

    The output of ``layer<i>`` is the i-th feature that RepDistiller's networks return (``is_feat=True``), so that a tap
    on ``backbone.layer2`` is in each of them the hint layer 2 of the papers. What follows the last of these and comes
    before the pooling, where there is something, is one ``layer`` more.

    Args:
        stages: the modules.
        out_indices: which outputs to return; by default the last alone, from which the classifier's neck pools.

    Raises:
        ValueError: ``out_indices`` names no stage.
    """

    def __init__(self, stages: Sequence[nn.Module], out_indices: Sequence[int], init_cfg: dict | None) -> None:
        super().__init__(init_cfg)
        count = len(stages)
        if not out_indices or any(not isinstance(i, int) or not -count <= i < count for i in out_indices):
            key = f'{type(self).__name__}.out_indices'
            raise ValueError(f'{key}: expected integers in [{-count}, {count - 1}], found {out_indices!r}')
        self.out_indices = sorted(i % count for i in out_indices)
        for i, stage in enumerate(stages):
            self.add_module(f'layer{i}', stage)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> the chosen stages' outputs (N, C, H', W'), in the network's order."""
        outs = []
        for i in range(self.out_indices[-1] + 1):
            x = self.get_submodule(f'layer{i}')(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution that keeps the size (but for the stride), BatchNorm and, unless told otherwise, ReLU.

    The ReLU is not in place: a tap on the BatchNorm before it would see what it did.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *([nn.ReLU()] if relu else []))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of ``groups`` out in turn (Zhang et al., ShuffleNet, arXiv:1707.01083, fig. 1)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def blocks_per_stage(key: str, depth: int, rest: int) -> int:
    """The n of a network of ``depth = 6 n + rest`` layers: three stages of n blocks of two convolutions.

    Raises:
        ValueError: there is none; names the nearest depth.
    """
    n, left = divmod(depth - rest, 6)
    if left or n < 1:
        near = 6 * max(1, round((depth - rest) / 6)) + rest
        raise ValueError(f'{key}: expected 6 n + {rest} with n >= 1, found {depth!r}; nearest: {near}')
    return n
