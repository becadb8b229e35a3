"""DIST: imitation of the predictions' correlations."""

from torch import Tensor

from mmsokd.checks import check_number, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.logits import check_classes, check_logits
from mmsokd.losses.standardize import standardize
from mmsokd.registry import MODELS

EPS = 1e-8  # below such a standard deviation a row counts as constant


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of ``a`` and ``b`` along ``dim``; 0, without a gradient, where one of them is constant.

    The authors' code adds 1e-8 to the product of both lengths, so that a row which hardly varies counts for less and
    less; here it counts fully or as zero [ours].
    """
    return (standardize(a, dim, EPS) * standardize(b, dim, EPS)).mean(dim)


@in_fp32
def dist_loss(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0) -> Tensor:
    r"""One minus the correlations between classes and within classes (Huang et al., DIST, arXiv:2205.10536, sec. 4).

    .. math:: \tau^2 (\beta\, (1 - \bar r_{inter}) + \gamma\, (1 - \bar r_{intra}))

    with ``r_inter`` Pearson's correlation of the softened probabilities over the classes, averaged over the
    predictions, and ``r_intra`` that over the predictions, averaged over the classes. The factor tau^2 is the authors'
    code's. Each position of dense logits is a prediction, as there.

    Args:
        student, teacher: logits (N, K) or (N, K, H, W). The distiller hands the teacher over without a graph.
        beta, gamma: weights of the two parts.
        tau: temperature.

    Returns: scalar in [0, 2 tau^2 (beta + gamma)]. Constant probabilities count as uncorrelated: of a single picture
        the inter-class part alone has a gradient.

    Raises:
        ValueError: the shapes differ, or are none of these.
    """
    check_logits(student, teacher)
    s, t = _predictions(student / tau), _predictions(teacher / tau)
    inter, intra = (1 - pearson(s, t, dim).mean() for dim in (1, 0))
    return tau**2 * (beta * inter + gamma * intra)


def _predictions(logits: Tensor) -> Tensor:
    """(N, K) or (N, K, H, W) -> probabilities (N H W, K)."""
    return logits.softmax(1).movedim(1, -1).flatten(0, -2)


@MODELS.register_module()
class DISTLoss(TermLoss):
    """:func:`dist_loss` as a term's loss.

    Args:
        beta, gamma: weights of the inter-class and the intra-class part.
        tau: temperature > 0. The authors take 1, 1, 1 on ImageNet, and 2, 2, 4 on CIFAR-100.
        teacher_channels: K; the distiller fills it in.

    Raises:
        ValueError: ``beta`` or ``gamma`` is negative, or ``tau`` not positive.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)

    def __init__(
        self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0, teacher_channels: int | None = None
    ) -> None:
        super().__init__()
        check_number('DISTLoss.beta', beta)
        check_number('DISTLoss.gamma', gamma)
        check_positive('DISTLoss.tau', tau)
        check_classes('DISTLoss', teacher_channels)
        self.beta = beta
        self.gamma = gamma
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`dist_loss`."""
        return dist_loss(student, teacher, self.beta, self.gamma, self.tau)
