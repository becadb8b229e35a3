"""VGGs for 32 x 32 pictures."""

from collections.abc import Sequence

from torch import nn

from mmsokd.backbones.base import HE_FAN_OUT, Chain, conv_norm
from mmsokd.checks import check_choice
from mmsokd.registry import MODELS

CONVS_PER_STAGE = {8: 1, 13: 2}
WIDTHS = (64, 128, 256, 512, 512)


@MODELS.register_module()
class CIFARVGG(Chain):
    """VGG-8 and VGG-13 with BatchNorm (Simonyan and Zisserman, arXiv:1409.1556) and one linear layer, as RepDistiller.

    The last stage keeps the size of the one before.

    ========  ====================  ==============================
    layer     output for 32 x 32    what a tap gives
    ========  ====================  ==============================
    layer0    64 x 32 x 32          stage 1, after its last ReLU
    layer1    128 x 16 x 16         stage 2, likewise
    layer2    256 x 8 x 8           stage 3, likewise
    layer3    512 x 4 x 4           stage 4, likewise
    layer4    512 x 4 x 4           stage 5, likewise
    ========  ====================  ==============================

    RepDistiller's ``preact`` features, after a stage's last BatchNorm and before its ReLU, are the outputs of
    ``layer1.1.1``, ``layer2.1.1``, ``layer3.1.1`` and ``layer4.0.1`` in VGG-8 (the pooling is ``layer1.0``), and of
    ``layer1.2.1``, ``layer2.2.1``, ``layer3.2.1`` and ``layer4.1.1`` in VGG-13.

    Args:
        depth: 8 or 13.
        out_indices: which layers' outputs to return.

    Raises:
        ValueError: there is no such depth, or ``out_indices`` names no layer.
    """

    def __init__(self, depth: int, out_indices: Sequence[int] = (-1,), init_cfg: dict | None = HE_FAN_OUT) -> None:
        check_choice('CIFARVGG.depth', depth, CONVS_PER_STAGE)
        stages = []
        before = 3
        for i, width in enumerate(WIDTHS):
            pool = [nn.MaxPool2d(2)] if 0 < i < 4 else []
            convs = [conv_norm(before if j == 0 else width, width, 3, bias=True) for j in range(CONVS_PER_STAGE[depth])]
            stages.append(nn.Sequential(*pool, *convs))
            before = width
        super().__init__(stages, out_indices, init_cfg)
