"""Attention transfer."""

from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_maps, check_number
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.weighting import mean_over_positions
from mmsokd.registry import MODELS


def attention_map(feat: Tensor, p: float = 2.0) -> Tensor:
    """Where a feature is active: mean over the channels of ``|F|^p``, with unit length over the map.

    Args:
        feat: (N, C, H, W).
        p: exponent >= 1.

    Returns: (N, 1, H, W), each sample of l2 norm 1 (0 for a blank feature).
    """
    energy = feat.abs().pow(p).mean(1, keepdim=True)
    return F.normalize(energy.flatten(1)).view_as(energy)


@in_fp32
def at_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None, p: float = 2.0) -> Tensor:
    r"""Mean squared difference of attention maps (Zagoruyko and Komodakis, arXiv:1612.03928, eq. 2).

    Squared and averaged over the positions, as in RepDistiller.

    .. math:: \frac{1}{NHW} \| Q_s - Q_t \|^2, \quad Q = \frac{\mathrm{vec}\, \mathrm{mean}_c |F_c|^p}{\| \cdot \|_2}

    Args:
        student, teacher: features (N, C, H, W) and (N, C', H, W): the channels may differ.
            The distiller hands the teacher over without a graph.
        weight: position weights (N, 1, H, W); the mean is then taken over what they weigh.
        p: exponent of the activation.

    Returns: scalar >= 0; zero iff the attention maps agree (where weighed).

    Raises:
        ValueError: they are no maps, or their sizes differ.
    """
    check_maps(student, teacher, same_channels=False)
    difference = attention_map(student, p) - attention_map(teacher, p)
    return mean_over_positions(difference**2, weight)


@MODELS.register_module()
class ATLoss(TermLoss):
    """:func:`at_loss` as a term's loss.

    Args:
        p: exponent of the activation, >= 1. Take a ``loss_weight`` around 1000, as the benchmarks do.

    Raises:
        ValueError: ``p`` is no number, or below 1.
    """

    ranks = (4,)
    per_position = True

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        check_number('ATLoss.p', p, least=1)
        self.p = p

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`at_loss`."""
        return at_loss(student, teacher, weight, self.p)
