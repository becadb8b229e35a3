"""ReviewKD's fusion: each level of the student reviews the deeper ones."""

from collections.abc import Mapping, Sequence

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_integer, check_norm
from mmsokd.registry import MODELS


class AttentionFusion(BaseModule):
    """ABF, the attention-based fusion of one level with what comes from the deeper ones (arXiv:2104.09044, sec. 3.3).

    The convs start as mmcv's do [ours: the published code draws them by ``kaiming_uniform_(a=1)``].

    Args:
        in_channels, mid_channels, out_channels: of the student's level, of what is passed on, of the teacher's level.
        norm_cfg: norm layer of both convs.
        deepest: there is nothing deeper to fuse with.
    """

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, norm_cfg: Mapping | None, deepest: bool
    ) -> None:
        super().__init__()
        self.reduce = ConvModule(in_channels, mid_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
        self.attention = None if deepest else nn.Conv2d(2 * mid_channels, 2, 1)
        self.expand = ConvModule(mid_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None)

    def forward(self, feat: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The level in the teacher's width and ``size``, and what the next finer level gets, (N, mid, H, W)."""
        feat = self.reduce(feat)
        if self.attention is not None:
            deeper = _nearest(deeper, feat.shape[-2:])
            share = self.attention(torch.cat([feat, deeper], 1)).sigmoid()  # (N, 2, H, W)
            feat = share[:, :1] * feat + share[:, 1:] * deeper
        feat = _nearest(feat, size)
        return self.expand(feat), feat


def _nearest(feat: Tensor, size: Sequence[int]) -> Tensor:
    return feat if tuple(feat.shape[-2:]) == tuple(size) else F.interpolate(feat, tuple(size), mode='nearest')


@MODELS.register_module()
class ReviewKDAdapter(BaseModule):
    """The student's levels fused from the deepest to the finest (Chen et al., ReviewKD, arXiv:2104.09044).

    Takes all levels of a tap at once, from fine to coarse. Any sizes fit: a level is brought to its teacher's, and the
    fused one to the next level's, by nearest neighbours.

    Args:
        in_channels, out_channels: the student's and the teacher's, level by level; the distiller fills them in.
        mid_channels: width of what is passed on; by default the student's last, at most 512, as in the published code.
        norm_cfg: norm layer (BN in the paper; SyncBN and GN work). BN needs more than one value a channel: give GN
            where a batch of one meets a level of one cell.

    Raises:
        ValueError: ``mid_channels`` is not positive, or GN's ``num_groups`` missing or no divisor of the channels.
    """

    pyramid = True

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        mid_channels: int | None = None,
        norm_cfg: Mapping | None = dict(type='BN'),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        middle = min(512, in_channels[-1]) if mid_channels is None else mid_channels
        check_integer('ReviewKDAdapter.mid_channels', middle, 1)
        check_norm('ReviewKDAdapter.norm_cfg', norm_cfg, middle, *out_channels)
        last = len(in_channels) - 1
        self.levels = ModuleList(
            AttentionFusion(i, middle, o, norm_cfg, deepest=level == last)
            for level, (i, o) in enumerate(zip(in_channels, out_channels, strict=True))
        )

    def forward(self, feats: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Each level (N, C_s, H, W) -> (N, C_t, H_t, W_t) at its ``size``, with the deeper ones in it."""
        fused, deeper = [], None
        for level, feat, size in reversed(list(zip(self.levels, feats, sizes, strict=True))):
            out, deeper = level(feat, deeper, size)
            fused.append(out)
        return fused[::-1]
