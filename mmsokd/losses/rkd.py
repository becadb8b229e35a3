"""Relational knowledge distillation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_number
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.pooling import pooled
from mmsokd.registry import MODELS


def relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """How the pictures of a batch lie to each other (arXiv:1904.05068, sec. 3.2).

    Args:
        vectors: (N, C).

    Returns:
        The distances (N, N) in units of their mean, and the cosines (N, N, N), ``[j, i, k]`` of the angle at ``j``
        between ``i`` and ``k``. Pictures in one place have distance 0 and cosine 0, without a gradient.
    """
    n = len(vectors)
    difference = vectors[None] - vectors[:, None]  # (N, N, C): [j, i] leads from j to i
    length = torch.linalg.vector_norm(difference, dim=2)
    mean = length.sum() / max(n * (n - 1), 1)
    unit = difference / torch.where(length > 0, length, 1.0)[..., None]
    return length / torch.where(mean > 0, mean, 1.0), unit @ unit.transpose(1, 2)


@in_fp32
def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    r"""Huber losses of distances and angles between pictures (Park et al., RKD, arXiv:1904.05068, sec. 3.2).

    .. math:: w_d\, \overline{l_1(d_s - d_t)} + w_a\, \overline{l_1(\cos_s - \cos_t)}

    Means over all N^2 pairs and N^3 triples, those of equal members among them, as the authors' code takes; the paper
    sums. Maps are averaged first [ours: the paper compares embeddings]. It holds N^2 C + N^3 numbers a side.

    Args:
        student, teacher: (N, C) or (N, C, H, W) and (N, C', ...): the channels may differ.
            The distiller hands the teacher over without a graph.
        distance_weight, angle_weight: of the two parts.

    Returns: scalar >= 0; zero where the two batches are congruent up to scale, and for a batch of one.

    Raises:
        ValueError: a feature is neither of these.
    """
    (s_distance, s_cosine), (t_distance, t_cosine) = relations(pooled(student)), relations(pooled(teacher))
    distances, angles = F.smooth_l1_loss(s_distance, t_distance), F.smooth_l1_loss(s_cosine, t_cosine)
    return distance_weight * distances + angle_weight * angles


@MODELS.register_module()
class RKDLoss(TermLoss):
    """:func:`rkd_loss` as a term's loss.

    Args:
        distance_weight, angle_weight: of the two parts; 25 and 50 are what the benchmarks take.

    Raises:
        ValueError: a weight is negative.
    """

    same_size = False
    ranks = (2, 4)

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_number('RKDLoss.distance_weight', distance_weight)
        check_number('RKDLoss.angle_weight', angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`rkd_loss`."""
        return rkd_loss(student, teacher, self.distance_weight, self.angle_weight)
