"""The CenterNet-like head that student and teacher share."""

import math
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

_START_SIZE = 3.0  # cells


class AreaMaps(NamedTuple):
    """What the head says of each cell; float32."""

    heat: Tensor  # (N, K, H, W), in (0, 1)
    size: Tensor  # (N, 2, H, W): width and height in cells, > 0
    offset: Tensor  # (N, 2, H, W): x and y from the cell's top left corner, in cells


class AreaHead(BaseModule):
    """Three branches, each conv3x3-ReLU-conv1x1, for heatmap, size and offset [authors' fork].

    Nothing tells it where objects are. So the start matters [ours]: heatmap bias -log 9 and size and offset convs of
    std 1e-3 as in CenterNet; sizes through a softplus, at first 3 cells; offsets at first half a cell, so that an
    untrained box is centred on its peak.

    Args:
        in_channels: of the feature, the teacher's.
        feat_channels: width of the branches.
        num_classes: channels K of the heatmap.
        final_relu: put a ReLU before the sigmoid, as the authors' fork does; it pins the heatmap to [0.5, 1). The bias
            then starts at zero [ours]: at -log 9 the ReLU would be closed everywhere, and no gradient would open it.
    """

    def __init__(self, in_channels: int, feat_channels: int, num_classes: int = 1, final_relu: bool = False) -> None:
        super().__init__()
        self.heat = _branch(in_channels, feat_channels, num_classes)
        self.size = _branch(in_channels, feat_channels, 2)
        self.offset = _branch(in_channels, feat_channels, 2)
        self.final_relu = final_relu
        self._start()

    def _start(self) -> None:
        nn.init.constant_(self.heat[-1].bias, 0.0 if self.final_relu else -math.log(9))
        for branch, start in ((self.size, math.log(math.expm1(_START_SIZE))), (self.offset, 0.5)):
            nn.init.normal_(branch[-1].weight, std=1e-3)
            nn.init.constant_(branch[-1].bias, start)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the three branches' first convolutions as one; a step has use for them several times."""
        first = [branch[0] for branch in (self.heat, self.size, self.offset)]
        return torch.cat([conv.weight for conv in first]), torch.cat([conv.bias for conv in first])

    def forward(self, feat: Tensor, joined: tuple[Tensor, Tensor] | None = None) -> AreaMaps:
        """Feature (N, C, H, W) -> maps of the same size; ``joined`` is what :meth:`joined` gave in this step."""
        branches = self.heat, self.size, self.offset
        # One convolution for the three: the feature is read once, and gets one gradient instead of three.
        weight, bias = self.joined() if joined is None else joined
        hidden = F.conv2d(feat, weight, bias, padding=1).relu_()
        parts = hidden.chunk(3, 1)
        heat, size, offset = (_predict(branch[-1], part) for branch, part in zip(branches, parts, strict=True))
        if self.final_relu:
            heat = heat.relu()
        return AreaMaps(heat.sigmoid(), F.softplus(size), offset)


def _branch(in_channels: int, feat_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, feat_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(feat_channels, out_channels, 1),
    )


def _predict(conv: nn.Conv2d, hidden: Tensor) -> Tensor:
    """A branch's last conv, in fp32 also under autocast: bf16 has so few values that peaks would tie."""
    with torch.autocast(hidden.device.type, enabled=False):
        return conv(hidden.to(conv.weight.dtype)).float()


def mix(student: AreaMaps, teacher: AreaMaps, source: str) -> AreaMaps:
    """The maps that boxes are read from: one network's, or ``'mutual'``: the geometric mean of the heatmaps [ours,
    after the abstract's "areas of mutual interest"] and the mean of sizes and offsets. Without a graph.
    """
    with torch.no_grad():
        if source == 'mutual':
            return AreaMaps(
                (student.heat * teacher.heat).sqrt(),
                (student.size + teacher.size) / 2,
                (student.offset + teacher.offset) / 2,
            )
        return AreaMaps(*(x.detach() for x in (student if source == 'student' else teacher)))
