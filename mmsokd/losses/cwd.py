"""CWD: where each channel is active, as a distribution over the map."""

from torch import Tensor

from mmsokd.checks import check_maps, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.logits import divergence
from mmsokd.registry import MODELS


@in_fp32
def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    r"""KL divergence of each channel's softmax over the positions (Shu et al., CWD, arXiv:2011.13256).

    .. math:: \frac{\tau^2}{NC} \sum_{n,c} \mathrm{KL}(\phi(t_{nc}) \,\|\, \phi(s_{nc})), \quad
        \phi(x)_i = \frac{\exp(x_i / \tau)}{\sum_j \exp(x_j / \tau)}

    Args:
        student, teacher: features or dense logits (N, C, H, W) of one shape.
            The distiller hands the teacher over without a graph.
        tau: temperature > 0; the factor tau^2 keeps gradients comparable across tau.

    Returns: scalar >= 0; zero iff each channel agrees up to a shift.

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    log_s, log_t = ((x.flatten(2) / tau).log_softmax(2) for x in (student, teacher))  # (N, C, HW)
    return tau**2 * divergence(log_t, log_s, dim=2).mean()


@MODELS.register_module()
class CWDLoss(TermLoss):
    """:func:`cwd_loss` as a term's loss, for features.

    A feature gets an adapter as any feature term does. A shape cannot tell dense logits from a feature: for
    ``decode_head.conv_seg`` or ``bbox_head.retina_cls`` take :class:`CWDLogitsLoss`.

    SoKD's areas are not used as weights: a distribution over the whole map has no meaning position by position.

    Args:
        tau: temperature > 0. The published code takes ``loss_weight=50`` on features, with 4.

    Raises:
        ValueError: ``tau`` is not positive.
    """

    same_channels = True
    ranks = (4,)

    def __init__(self, tau: float = 4.0) -> None:
        super().__init__()
        check_positive('CWDLoss.tau', tau)
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`cwd_loss`."""
        return cwd_loss(student, teacher, self.tau)


@MODELS.register_module()
class CWDLogitsLoss(CWDLoss):
    """:class:`CWDLoss` on dense logits, whose channels are the classes on both sides.

    They are compared as they are, without an adapter, and SoKD's plug-ins leave them alone; ``refine=dict(at=...)``
    reaches them through the teacher.

    Args:
        tau: temperature > 0. The published code takes ``loss_weight=3`` on logits, with 4.
    """

    on_logits = True
