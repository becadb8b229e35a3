"""LD: distillation of where the sides of a box are believed to be."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_positive, check_same_shape
from mmsokd.losses.base import TermLoss
from mmsokd.losses.boxes import boxes_in_cells, cells_of
from mmsokd.losses.weighting import mean_over_positions
from mmsokd.registry import MODELS


def ld_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None, tau: float = 10.0) -> Tensor:
    r"""KL divergence of the distributions of a box's four sides (Zheng et al., LD, arXiv:2102.12252).

    .. math:: \frac{\tau^2}{4P} \sum_p \sum_{e=1}^4 \mathrm{KL}(\phi(t_{pe}) \,\|\, \phi(s_{pe})), \quad
        \phi(x)_i = \frac{\exp(x_i / \tau)}{\sum_j \exp(x_j / \tau)}

    with ``p`` the ``P`` positions that count. The paper sums over the sides; the published code takes the mean over
    sides and over the bins, so that its weight of 0.25 is ``0.25 / (reg_max + 1)`` here.

    Args:
        student, teacher: GFL's logits (N, 4 (reg_max + 1), H, W) of one shape.
            The distiller hands the teacher over without a graph.
        weight: of the positions (N, 1, H, W); all count by default.
        tau: temperature > 0.

    Returns: scalar >= 0; zero iff all distributions agree (where weighed).

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student, teacher)
    log_s, log_t = (F.log_softmax(x.unflatten(1, (4, -1)) / tau, dim=2) for x in (student, teacher))
    divergence = F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(2)  # (N, 4, H, W)
    return tau**2 * mean_over_positions(divergence, weight)


def inside_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which cells some box touches: corners in cells (N, n, 4), NaN for none -> (N, 1, H, W), 0 or 1."""
    rows, columns = (cells.to(boxes.dtype) for cells in cells_of(boxes, size))
    return (rows.transpose(1, 2) @ columns > 0).to(boxes.dtype)[:, None]


@MODELS.register_module()
class LDLoss(TermLoss):
    """:func:`ld_loss` over the positions that ground-truth boxes touch [ours].

    The paper takes the positions that the assigner finds positive, and a valuable region around them.

    Tap ``bbox_head.gfl_reg``, or ``bbox_head[1]``: what GFLHead decodes is the former times a learned scale a level,
    and the latter is that. ``reg_max`` is read off the channels; it must be the same in both detectors.

    Args:
        teacher_channels: 4 (reg_max + 1); the distiller fills them in.
        tau: temperature > 0, 10 in the paper.

    Raises:
        ValueError: ``teacher_channels`` is no multiple of 4 of at least two bins a side, or ``tau`` not positive.
    """

    same_channels = True
    on_logits = True
    wants_samples = True

    def __init__(self, teacher_channels: int, tau: float = 10.0) -> None:
        super().__init__()
        if teacher_channels % 4 or teacher_channels < 8:
            raise ValueError(
                f'LDLoss: expected the 4 * (reg_max + 1) channels of a GFL head, found {teacher_channels}; '
                "tap 'bbox_head.gfl_reg' or 'bbox_head[1]'"
            )
        check_positive('LDLoss.tau', tau)
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence | None = None) -> Tensor:
        """The loss of one level; zero where no picture has a box.

        Args:
            student, teacher: (N, 4 (reg_max + 1), H, W).
            samples: N data samples with ``gt_instances.bboxes``.

        Raises:
            ValueError: the shapes differ, or the samples have no boxes.
        """
        with torch.no_grad():
            inside = inside_boxes(boxes_in_cells(samples, teacher), teacher.shape[-2:])
        return ld_loss(student, teacher, inside, self.tau)
