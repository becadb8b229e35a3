"""Convolutional adapters: a student's feature in its teacher's width and size."""

from collections.abc import Mapping

from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_bool, check_choice, check_integer, check_layer, check_norm, check_positive
from mmsokd.registry import MODELS

MODES = ('bilinear', 'nearest', 'area')
RESIZES = (None, *MODES, 'conv')


class _Adapter(BaseModule):
    """What the adapters do about sizes."""

    resizes = RESIZES

    def __init__(self, resize: str | None, init_cfg: dict | None) -> None:
        super().__init__(init_cfg)
        check_choice(f'{type(self).__name__}.resize', resize, self.resizes)
        self.resize = resize

    def _fit(self, feat: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Bring a map to ``size``.

        Raises:
            ValueError: it differs, and no ``resize`` is set.
        """
        if size is None or tuple(feat.shape[-2:]) == tuple(size):
            return feat
        if self.resize is None:
            raise ValueError(
                f'{type(self).__name__}.resize: expected equal sizes without it, found {tuple(feat.shape[-2:])} for '
                f"the student and {tuple(size)} for the teacher; give resize='bilinear'"
            )
        # 'conv' has already halved or doubled; it can be a cell off where a side is odd
        mode = 'bilinear' if self.resize == 'conv' else self.resize
        return F.interpolate(feat, size, mode=mode, align_corners=False if mode == 'bilinear' else None)


def _resizing_conv(owner: str, in_channels: int, out_channels: int, ratio: float) -> nn.Module:
    """One conv that scales a map by ``ratio``, for 2 and 1/2 the CIFAR benchmarks' (RepDistiller's ``ConvReg``)."""
    factor = _factor(owner, ratio)
    if factor == 1:
        return nn.Conv2d(in_channels, out_channels, 1)
    if ratio < 1:
        return nn.Conv2d(in_channels, out_channels, 2 * factor - 1, stride=factor, padding=factor - 1)
    even = 1 - factor % 2  # an odd kernel cannot lie evenly about an even number of cells
    kernel = 2 * factor - 1 + even
    return nn.ConvTranspose2d(in_channels, out_channels, kernel, stride=factor, padding=(kernel - factor) // 2)


def _norm_and_act(channels: int, norm_cfg: Mapping | None, act_cfg: Mapping | None) -> list[nn.Module]:
    """What a ConvModule has behind its conv."""
    norm = [build_norm_layer(norm_cfg, channels)[1]] if norm_cfg is not None else []
    return norm + ([build_activation_layer(act_cfg)] if act_cfg is not None else [])


def _factor(owner: str, ratio: float) -> int:
    """The integer that ``ratio`` scales by, up or down; maps of odd sides are a little off it (13 to 7 cells)."""
    check_positive(f'{owner}.stride_ratio', ratio)
    factor = max(ratio, 1 / ratio)
    whole = round(factor)
    if abs(factor - whole) > (0.25 if whole > 1 else 0):
        raise ValueError(
            f"{owner}.resize: expected another than 'conv' where the stride_ratio is no integer nor one over it, found "
            f"{ratio!r}; give resize='bilinear'"
        )
    return whole


@MODELS.register_module()
class ResizeAdapter(_Adapter):
    """Nothing but another size, for logits.

    Args:
        resize: an interpolation mode, ``'bilinear'``, ``'nearest'`` or ``'area'``.

    Raises:
        ValueError: ``resize`` is none of these.
    """

    keeps_channels = True
    resizes = MODES

    def __init__(self, resize: str = 'bilinear', init_cfg: dict | None = None) -> None:
        super().__init__(resize, init_cfg)

    def forward(self, feat: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C, H, W) -> (N, C, H_t, W_t)."""
        return self._fit(feat, size)


@MODELS.register_module()
class ConvAdapter(_Adapter):
    """One convolution to the teacher's channels, the regressor of FitNet (arXiv:1412.6550, sec. 2.2).

    Args:
        in_channels, out_channels: the student's and the teacher's; the distiller fills them in.
        kernel_size: of the convolution; odd. Beside ``resize='conv'`` none is given.
        resize: how a map of another size is brought to the teacher's: None (refused), an interpolation mode, or
            ``'conv'``, a strided or transposed convolution by the integer factor of ``stride_ratio``.
        stride_ratio: the teacher's side over the student's; the distiller fills it in for ``'conv'``.
        norm_cfg, act_cfg: as mmcv's ConvModule takes them; none by default.

    Raises:
        ValueError: ``resize`` is unknown, ``kernel_size`` not odd, ``stride_ratio`` no integer factor, or GN's
            ``num_groups`` missing or no divisor of the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        resize: str | None = None,
        stride_ratio: float = 1.0,
        norm_cfg: Mapping | None = None,
        act_cfg: Mapping | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(resize, init_cfg)
        check_integer('ConvAdapter.kernel_size', kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(
                f'ConvAdapter.kernel_size: expected an odd number, which keeps the size, found {kernel_size}'
            )
        check_norm('ConvAdapter.norm_cfg', norm_cfg, out_channels)
        check_layer('ConvAdapter.act_cfg', act_cfg)
        if resize == 'conv':
            if kernel_size != 1:
                raise ValueError(
                    "ConvAdapter.kernel_size: expected none beside resize='conv', whose kernel follows from the "
                    f'strides, found {kernel_size}'
                )
            conv = _resizing_conv('ConvAdapter', in_channels, out_channels, stride_ratio)
            self.conv = nn.Sequential(conv, *_norm_and_act(out_channels, norm_cfg, act_cfg))
        else:
            self.conv = ConvModule(
                in_channels, out_channels, kernel_size, padding=kernel_size // 2, norm_cfg=norm_cfg, act_cfg=act_cfg
            )

    def forward(self, feat: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(N, C_s, H, W) -> (N, C_t, H_t, W_t); without ``size`` the map keeps its own."""
        if self.resize == 'conv':
            return self._fit(self.conv(feat), size)
        return self.conv(self._fit(feat, size))


@MODELS.register_module()
class SoKDAdapter(_Adapter):
    """SoKD's adapter ``Phi_s``: a 1x1 (or size-matching) conv-norm-ReLU, then two 3x3 conv-norm-ReLU [authors' fork].

    Args:
        in_channels, out_channels: the student's and the teacher's; the distiller fills them in.
        feat_channels: width of the first two convs; ``out_channels`` by default, as in the authors' fork. On a pyramid
            the distiller takes at most 64 [ours]: at 256 the two 3x3 convs make 1.2 M multiplications a cell, and
            RetinaNet's whole head 6.5 M.
        signed: the teacher's feature takes negative values: the last conv then has neither norm nor ReLU [ours: a
            final ReLU could not reach it, a final norm would fix its scale].
        norm_cfg: norm layer (BN in the authors' fork; SyncBN and GN work). GN's ``num_groups`` must divide the widths.
        resize, stride_ratio: as in :class:`ConvAdapter`.

    Raises:
        ValueError: as :class:`ConvAdapter` does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feat_channels: int | None = None,
        signed: bool = True,
        norm_cfg: Mapping | None = dict(type='BN'),
        resize: str | None = None,
        stride_ratio: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(resize, init_cfg)
        check_bool('SoKDAdapter.signed', signed)
        width = out_channels if feat_channels is None else feat_channels
        check_integer('SoKDAdapter.feat_channels', width, 1)
        check_norm('SoKDAdapter.norm_cfg', norm_cfg, width, *([] if signed else [out_channels]))
        options = dict(norm_cfg=norm_cfg, act_cfg=dict(type='ReLU'))
        last = dict(norm_cfg=None, act_cfg=None) if signed else options
        if resize == 'conv':
            conv = _resizing_conv('SoKDAdapter', in_channels, width, stride_ratio)
            self.match = nn.Sequential(conv, *_norm_and_act(width, **options))
        else:
            self.match = ConvModule(in_channels, width, 1, **options)
        self.convs = nn.Sequential(
            ConvModule(width, width, 3, padding=1, **options), ConvModule(width, out_channels, 3, padding=1, **last)
        )

    def forward(self, feat: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(N, C_s, H, W) -> (N, C_t, H_t, W_t); without ``size`` the map keeps its own."""
        return self.convs(self._fit(self.match(feat), size))
