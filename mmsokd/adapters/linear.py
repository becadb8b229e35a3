"""A linear adapter: a student's vectors, tokens or queries in its teacher's width."""

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmsokd.registry import MODELS


@MODELS.register_module()
class LinearAdapter(BaseModule):
    """One linear map to the teacher's channels: what ConvAdapter is to maps [ours].

    Args:
        in_channels, out_channels: the student's and the teacher's; the distiller fills them in.
    """

    def __init__(self, in_channels: int, out_channels: int, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, feat: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(N, C_s) -> (N, C_t), or (N, L, C_s) -> (N, L, C_t); ``size``, which maps are brought to, has no meaning."""
        return self.linear(feat)
