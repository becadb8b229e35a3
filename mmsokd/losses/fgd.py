"""FGD: focal distillation of foreground and background apart, and global distillation of their relation."""

from collections.abc import Sequence

import torch
from mmengine.model import kaiming_init
from torch import Tensor, nn

from mmsokd.checks import check_maps, check_number, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.boxes import boxes_in_cells, cells_of
from mmsokd.registry import MODELS


def focal_masks(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background masks times their scale (Yang et al., arXiv:2111.11837, sec. 3.1).

    A cell that a box touches is foreground and counts one over the number of cells of the smallest such box; any other
    counts one over the number of background cells. The box's cells are those it touches [ours: the published code
    takes one more row and column, and in its first version exchanged rows and columns].

    Args:
        boxes: corners in cells (N, n, 4), filled up with NaN, n >= 1 (:func:`~mmsokd.losses.boxes.boxes_in_cells`).
        size: height and width of the map.

    Returns: two maps (N, 1, H, W) >= 0; each cell is positive in one of them.
    """
    rows, columns = cells_of(boxes, size)
    cells = rows.sum(-1) * columns.sum(-1)  # (N, n)
    inside = rows[..., :, None] & columns[..., None, :]  # (N, n, H, W)
    share = 1 / cells.clamp(min=1).to(boxes.dtype)
    foreground = (inside * share[..., None, None]).amax(1, keepdim=True)
    rest = (foreground == 0).to(boxes.dtype)
    return foreground, rest / rest.sum((2, 3), keepdim=True).clamp(min=1)


def attention_maps(feat: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Spatial (N, 1, H, W) and channel attention (N, C, 1, 1), each of mean 1 (sec. 3.1).

    The softmax, at a temperature, of the mean ``|F|`` over the channels and over the positions.
    """
    n, c, h, w = feat.shape
    energy = feat.abs()
    spatial = (energy.mean(1).flatten(1) / temperature).softmax(1) * (h * w)
    channel = (energy.mean((2, 3)) / temperature).softmax(1) * c
    return spatial.view(n, 1, h, w), channel.view(n, c, 1, 1)


@in_fp32
def fgd_focal_loss(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    alpha: float,
    beta: float,
    gamma: float,
    temperature: float = 0.5,
) -> Tensor:
    r"""Feature and attention loss of the focal distillation (Yang et al., arXiv:2111.11837, sec. 3.1).

    .. math:: \frac{1}{N} \Big[ \sum (\alpha M^f + \beta M^b) A_t^S A_t^C (F_t - F_s)^2
        + \gamma (\| A_t^S - A_s^S \|_1 + \| A_t^C - A_s^C \|_1) \Big]

    Sums over channels and positions, the mean over the samples, as in the published code.

    Args:
        student, teacher: features (N, C, H, W) of one shape.
            The distiller hands the teacher over without a graph.
        masks: ``M^f`` and ``M^b`` with their scale, of :func:`focal_masks`.
        alpha, beta, gamma: weights of foreground, background and attention.
        temperature: of the attention.

    Returns: scalar >= 0; zero for equal features.

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    foreground, background = masks
    ours, theirs = attention_maps(student, temperature), attention_maps(teacher, temperature)
    where = (alpha * foreground + beta * background) * theirs[0] * theirs[1]
    feature = (where * (student - teacher) ** 2).sum()
    attention = sum((a - b).abs().sum() for a, b in zip(ours, theirs, strict=True))
    return (feature + gamma * attention) / len(student)


class GlobalContext(nn.Module):
    """GCNet's block, which FGD takes for the relation of the positions (arXiv:2111.11837, sec. 3.2).

    ``F + W_2 ReLU(LN(W_1 c))`` with the context ``c``, the mean of F under a softmax over the positions. Its first and
    last layers start as in the published code, the last at zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(channels // 2, 1)
        self.key = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.LayerNorm([width, 1, 1]), nn.ReLU(), nn.Conv2d(width, channels, 1)
        )
        kaiming_init(self.key, mode='fan_in')
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, feat: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        where = self.key(feat).flatten(2).softmax(2)  # (N, 1, HW)
        context = feat.flatten(2) @ where.transpose(1, 2)  # (N, C, 1)
        return feat + self.transform(context[..., None])


@in_fp32
def fgd_loss(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    relations: tuple[nn.Module, nn.Module],
    lambda_: float,
    **focal: float,
) -> Tensor:
    r"""Focal and global distillation (Yang et al., arXiv:2111.11837, sec. 3.3).

    .. math:: L_{focal} + \frac{\lambda}{N} \| R_t(F_t) - R_s(F_s) \|^2

    Args:
        student, teacher, masks, focal: as :func:`fgd_focal_loss` takes them.
        relations: ``R_s`` and ``R_t``, each a :class:`GlobalContext`.
        lambda_: weight of the relation.

    Returns: scalar >= 0.

    Raises:
        ValueError: the features are no maps of one shape.
    """
    local = fgd_focal_loss(student, teacher, masks, **focal)
    ours, theirs = relations
    return local + lambda_ * (theirs(teacher) - ours(student)).square().sum() / len(student)


@MODELS.register_module()
class FGDLoss(TermLoss):
    """:func:`fgd_loss` as a term's loss.

    Each relation is a :class:`GlobalContext` with parameters of its own; both learn. Boxes are read off the batch's
    data samples, which only detectors have. The map covers the padded batch [ours: the published code scales the boxes
    by the picture's own size]. A picture without boxes is all background. For 16 pictures of up to 100 boxes on a map
    of 100 x 152 cells the masks need about 0.1 GB for a moment.

    SoKD's areas are not used as weights: FGD sets its own, from the boxes and the attention.

    Args:
        teacher_channels: the distiller fills them in.
        alpha, beta, gamma, lambda_: weights of foreground, background, attention and global relation. The published
            configs have 1e-3, 5e-4, 5e-4, 5e-6 for RetinaNet (the default), 5e-5, 2.5e-5, 5e-5, 5e-7 for two-stage
            detectors, and 1.6e-3, 8e-4, 8e-4, 8e-6 with temperature 0.8 for FCOS.
        temperature: of the attention.

    Raises:
        ValueError: a weight is negative, or the temperature not positive.
    """

    same_channels = True
    ranks = (4,)
    wants_samples = True

    def __init__(
        self,
        teacher_channels: int,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
        lambda_: float = 5e-6,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        for key, value in dict(alpha=alpha, beta=beta, gamma=gamma, lambda_=lambda_).items():
            check_number(f'FGDLoss.{key}', value)
        check_positive('FGDLoss.temperature', temperature)
        self.focal = dict(alpha=alpha, beta=beta, gamma=gamma, temperature=temperature)
        self.lambda_ = lambda_
        self.student_relation = GlobalContext(teacher_channels)
        self.teacher_relation = GlobalContext(teacher_channels)

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence | None = None) -> Tensor:
        """The loss of one level.

        Args:
            student, teacher: (N, C, H, W).
            samples: N data samples with ``gt_instances.bboxes``.

        Raises:
            ValueError: they are no maps of one shape, or the samples have no boxes.
        """
        with torch.no_grad():
            masks = focal_masks(boxes_in_cells(samples, teacher), teacher.shape[-2:])
        relations = self.student_relation, self.teacher_relation
        return fgd_loss(student, teacher, masks, relations, self.lambda_, **self.focal)
