"""MGD: the student's masked feature must restore the teacher's whole one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmsokd.checks import check_maps, check_range
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.weighting import mean_squared_error
from mmsokd.registry import MODELS


def draw_mask(feat: Tensor, ratio: float) -> Tensor:
    """A map (N, 1, H, W) of zeros with probability ``ratio`` and ones, drawn anew for each sample and position."""
    return (torch.rand_like(feat[:, :1]) >= ratio).to(feat.dtype)


@in_fp32
def mgd_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    generate: Callable[[Tensor], Tensor],
    weight: Tensor | None = None,
) -> Tensor:
    r"""Squared error of the teacher's feature restored from the masked student (Yang et al., MGD, arXiv:2205.01529).

    .. math:: \frac{1}{N} \| F_t - G(M \odot F_s) \|^2

    The sum over channels and positions, the mean over the samples, as in the published code; its ``alpha_mgd`` is the
    term's ``loss_weight``.

    Args:
        student, teacher: features (N, C, H, W) of one shape.
            The distiller hands the teacher over without a graph.
        mask: (N, 1, H, W), 0 where the student is hidden.
        generate: the generation block ``G``, a map of features.
        weight: position weights (N, 1, H, W): where the restored feature counts. The mean over them is scaled to the
            whole map, so that equal weights change nothing.

    Returns: scalar >= 0; zero iff the teacher is restored (where weighed).

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    return mean_squared_error(generate(student * mask), teacher, weight) * teacher.shape[1:].numel()


@MODELS.register_module()
class MGDLoss(TermLoss):
    """:func:`mgd_loss` with its random mask and its generation block, conv3x3-ReLU-conv3x3.

    Its ``loss_weight`` is small, since the squares are summed: the published code has 2e-5 for one-stage detectors and
    segmentation, 5e-7 for two-stage detectors.

    Args:
        teacher_channels: width of the block; the distiller fills it in.
        lambda_mgd: probability in [0, 1) that a position is hidden; the published code has 0.65 for one-stage
            detectors, 0.45 for two-stage ones and 0.75 for segmentation.

    Raises:
        ValueError: ``lambda_mgd`` is outside of [0, 1).
    """

    same_channels = True
    ranks = (4,)
    per_position = True

    def __init__(self, teacher_channels: int, lambda_mgd: float = 0.65) -> None:
        super().__init__()
        check_range('MGDLoss.lambda_mgd', lambda_mgd, 0, 1, closed=False)
        self.lambda_mgd = lambda_mgd
        self.generate = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """See :func:`mgd_loss`."""
        return mgd_loss(student, teacher, draw_mask(student, self.lambda_mgd), self.generate, weight)
