"""LD: distillation of where the sides of a box are believed to be."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmsokd.checks import check_maps, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.boxes import boxes_in_cells, cells_of
from mmsokd.losses.logits import divergence
from mmsokd.losses.weighting import mean_over_positions
from mmsokd.registry import MODELS


@in_fp32
def ld_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None, tau: float = 10.0) -> Tensor:
    r"""KL divergence of the distributions of a box's four sides (Zheng et al., LD, arXiv:2102.12252).

    .. math:: \frac{\tau^2}{4P} \sum_p \sum_{e=1}^4 \mathrm{KL}(\phi(t_{pe}) \,\|\, \phi(s_{pe})), \quad
        \phi(x)_i = \frac{\exp(x_i / \tau)}{\sum_j \exp(x_j / \tau)}

    with ``p`` the ``P`` positions that count. The mean over the positions, as GFL has it for its own loss of the
    distributions [ours: the published code takes the mean over sides and bins, and the sum over the positive positions
    of all levels, each times the student's class score; its weight does not carry over].

    Args:
        student, teacher: GFL's logits (N, 4 (reg_max + 1), H, W) of one shape.
            The distiller hands the teacher over without a graph.
        weight: of the positions (N, 1, H, W); all count by default.
        tau: temperature > 0.

    Returns: scalar >= 0; zero iff all distributions agree (where weighed).

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    log_s, log_t = ((x.unflatten(1, (4, -1)) / tau).log_softmax(2) for x in (student, teacher))
    return tau**2 * mean_over_positions(divergence(log_t, log_s, dim=2), weight)  # (N, 4, H, W)


def inside_boxes(boxes: Tensor, size: tuple[int, int], reach: float = math.inf) -> Tensor:
    """Which cells some box touches that ends within ``reach`` of them.

    Args:
        boxes: corners in cells (N, n, 4), NaN for none.
        size: height and width of the map.
        reach: how far, in cells, the box's sides may be from the cell's corner, GFL's anchor point: ``reg_max``, since
            the distributions end there.

    Returns: (N, 1, H, W), 0 or 1.
    """
    rows, columns = cells_of(boxes, size)
    for cells, low, high in ((rows, boxes[..., 1:2], boxes[..., 3:]), (columns, boxes[..., :1], boxes[..., 2:3])):
        point = torch.arange(cells.shape[-1], device=boxes.device)
        cells &= (point - low <= reach) & (high - point <= reach)
    return (rows.to(boxes.dtype).transpose(1, 2) @ columns.to(boxes.dtype) > 0).to(boxes.dtype)[:, None]


@MODELS.register_module()
class LDLoss(TermLoss):
    """:func:`ld_loss` over the positions that ground-truth boxes touch whose sides the distributions reach [ours].

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
    ranks = (4,)
    on_logits = True
    wants_samples = True

    def __init__(self, teacher_channels: int, tau: float = 10.0) -> None:
        super().__init__()
        if not isinstance(teacher_channels, int) or teacher_channels % 4 or teacher_channels < 8:
            raise ValueError(
                f'LDLoss: expected the 4 * (reg_max + 1) channels of a GFL head, found {teacher_channels!r}; '
                "tap 'bbox_head.gfl_reg' or 'bbox_head[1]'"
            )
        check_positive('LDLoss.tau', tau)
        self.tau = tau
        self.reach = teacher_channels // 4 - 1

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence | None = None) -> Tensor:
        """The loss of one level; zero where no picture has a box.

        Args:
            student, teacher: (N, 4 (reg_max + 1), H, W).
            samples: N data samples with ``gt_instances.bboxes``.

        Raises:
            ValueError: they are no maps of one shape, or the samples have no boxes.
        """
        with torch.no_grad():
            inside = inside_boxes(boxes_in_cells(samples, teacher), teacher.shape[-2:], self.reach)
        return ld_loss(student, teacher, inside, self.tau)
