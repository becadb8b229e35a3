"""Knowledge distillation."""

from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_choice, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.logits import check_classes, check_logits, divergence
from mmsokd.losses.weighting import mean_over_predictions
from mmsokd.registry import MODELS


def _softmax_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return divergence(teacher.log_softmax(1), student.log_softmax(1))


def _sigmoid_kl(student: Tensor, teacher: Tensor) -> Tensor:
    on = divergence(F.logsigmoid(teacher), F.logsigmoid(student))
    return on + divergence(F.logsigmoid(-teacher), F.logsigmoid(-student))


ACTIVATIONS = {'softmax': _softmax_kl, 'sigmoid': _sigmoid_kl}


@in_fp32
def kd_loss(
    student: Tensor, teacher: Tensor, tau: float = 4.0, activation: str = 'softmax', weight: Tensor | None = None
) -> Tensor:
    r"""Divergence of softened predictions (Hinton et al., arXiv:1503.02531, sec. 2).

    .. math:: \tau^2\, \mathrm{KL}(\mathrm{softmax}(t / \tau) \,\|\, \mathrm{softmax}(s / \tau))

    averaged over the pictures, and over the positions of dense logits [ours: the paper has none].

    Args:
        student, teacher: logits (N, K) or (N, K, H, W). The distiller hands the teacher over without a graph.
        tau: temperature; the factor tau^2 keeps the gradient's size.
        activation: ``'sigmoid'`` for channels that are decided one by one, such as a detector's anchors x classes: the
            divergences of the K Bernoulli distributions, summed over the channels as the softmax's is [ours].
        weight: of each prediction, (N) or (N, H, W), >= 0: the mean is weighted, and zero where they all are.

    Returns: scalar >= 0; zero iff the softened predictions agree.

    Raises:
        ValueError: the shapes differ, or an argument is none of these.
    """
    check_choice('activation', activation, ACTIVATIONS)
    check_logits(student, teacher)
    value = ACTIVATIONS[activation](student / tau, teacher / tau)
    return tau**2 * (value.mean() if weight is None else mean_over_predictions(value, weight))


@MODELS.register_module()
class KDLoss(TermLoss):
    """:func:`kd_loss` as a term's loss.

    Args:
        tau: temperature > 0.
        activation: ``'softmax'`` or ``'sigmoid'``. A dense head with a sigmoid for each class, such as
            ``bbox_head.retina_cls``, wants the latter: a softmax would go over anchors and classes together.
        teacher_channels: K; the distiller fills it in.

    Raises:
        ValueError: an argument is none of these, or a softmax has but one channel.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)

    def __init__(self, tau: float = 4.0, activation: str = 'softmax', teacher_channels: int | None = None) -> None:
        super().__init__()
        check_positive('KDLoss.tau', tau)
        check_choice('KDLoss.activation', activation, ACTIVATIONS)
        if activation == 'softmax':
            check_classes("KDLoss.activation='softmax' (for one channel give 'sigmoid')", teacher_channels)
        self.tau = tau
        self.activation = activation

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`kd_loss`."""
        return kd_loss(student, teacher, self.tau, self.activation)
