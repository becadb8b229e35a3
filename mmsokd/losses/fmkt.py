"""FM-KT: a flow carries the student's feature to the teacher's prediction, which the student's own head learns."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmsokd.checks import check_choice, check_integer, check_positive
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.dist import dist_loss
from mmsokd.losses.kd import kd_loss
from mmsokd.losses.logits import check_classes, check_feature, check_feature_and_logits
from mmsokd.losses.targets import cross_entropy, targets
from mmsokd.registry import MODELS

METRICS = {'dist': partial(dist_loss, beta=2.0, gamma=2.0), 'kd': kd_loss}  # the weights are the authors' code's


def flow_ends(start: Tensor, velocity: Callable[[Tensor, float], Tensor], steps: int) -> Tensor:
    r"""Where a flow ends, as each step of Euler's method tells it (Shao et al., FM-KT, arXiv:2402.02012).

    .. math:: Z_{t - 1/N} = Z_t - \tfrac{1}{N} v(Z_t, t), \qquad \hat Z_0(t) = Z_1 - v(Z_t, t), \qquad t = 1 .. 1/N

    On a straight path (rectified flow) the velocity is the whole way, ``Z_1 - Z_0``, so that each step alone tells the
    end; the mean of what they tell is where the N steps together arrive.

    Args:
        start: ``Z_1``, of any shape.
        velocity: ``v``, of a tensor of that shape and the time in (0, 1].
        steps: N.

    Returns: (N, ...), from t = 1 to t = 1 / N.
    """
    state, ends = start, []
    for i in range(steps, 0, -1):
        way = velocity(state, i / steps)
        state = state - way / steps
        ends.append(start - way)
    return torch.stack(ends)


@in_fp32
def fmkt_loss(
    ends: Tensor, student: Tensor, teacher: Tensor, target: Tensor, metric: str = 'dist', tau: float = 1.0
) -> Tensor:
    r"""The steps learn the teacher and the true classes, the student their mean (the authors' code of FM-KT).

    .. math:: \frac{1}{N} \sum_i \big( D(e_i, t) + \mathrm{CE}(e_i, y) \big) + D\big(s, \tfrac{1}{N} \sum_i e_i\big)

    The mean is a constant for the student. Its own cross-entropy, which stands here in the authors' code, is the
    student's task loss.

    Args:
        ends: what the N steps predict (N, B, K) or (N, B, K, H, W).
        student, teacher: logits (B, K) or (B, K, H, W). The distiller hands the teacher over without a graph.
        target: the true classes (B) or (B, H, W), int64; below 0 is left out of the cross-entropy.
        metric: D: ``'dist'``, :func:`~mmsokd.losses.dist_loss` with both weights 2, or ``'kd'``,
            :func:`~mmsokd.losses.kd_loss`.
        tau: temperature of D.

    Returns: scalar >= 0.

    Raises:
        ValueError: the shapes differ, or ``metric`` is none of these.
    """
    check_choice('metric', metric, METRICS)
    distance = partial(METRICS[metric], tau=tau)
    flow = sum(distance(end, teacher) + cross_entropy(end, target) for end in ends) / len(ends)
    return flow + distance(student, ends.mean(0).detach())


class Velocity(nn.Module):
    """FM-KT's meta-encoder: two linear layers with a ReLU, added to their input, and a LayerNorm.

    The released code's ``'mlp'``, whose 1x1 convs are linear layers here. The time passes two linear layers and is
    added to what comes in [ours: there it is embedded by sinusoids first].

    Args:
        channels: of what flows.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.change = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, state: Tensor, time: float) -> Tensor:
        """(..., C) -> (..., C)."""
        state = state + self.time(state.new_full((1,), time))
        return self.norm(state + self.change(state))


@MODELS.register_module()
class FMKTLoss(TermLoss):
    r"""FM-KT (Shao et al., Precise Knowledge Transfer via Flow Matching, arXiv:2402.02012), its lightweight form.

    Tap the student's feature before the head and, last, the output: ``tap=['backbone.layer4', 'head.fc']``. The feature
    is where :func:`flow_ends` starts; each end passes the mean over the map and a linear layer, FM-KT's shape
    transformation, and is a prediction. They learn by :func:`fmkt_loss`, which reaches the feature through the flow. In
    the paper the student predicts by the flow; here, as in the authors' lightweight variant, a plain head learns the
    mean of the steps' predictions: the student's own. Flow and linear layer belong to the term, so that an exported
    student is the plain one. Of the teacher the output alone is looked at.

    The true classes come from mmpretrain's ``gt_label``. Dense logits, with mmseg's ``gt_sem_seg``, need a feature of
    their size, whose positions flow one by one [ours: the paper has no segmentation]. A detector's predictions have no
    class before they are assigned: it is not supported.

    Pairs of student and teacher stay together: the ``dirac_ratio`` of the authors' code is 1, its default.

    Args:
        student_channels, teacher_channels: of both levels; the distiller fills them in.
        steps: N; the authors' code trains the classifiers' flow with 8.
        metric: ``'dist'``, the default of the authors' code for logits, or ``'kd'``.
        tau: temperature > 0 of the metric; theirs is 1 for the former, 4 for the latter.
        ignore_index: value of ``gt_sem_seg`` that is left out.

    Raises:
        ValueError: an argument is out of its range, or the levels are no feature and output of as many classes.
    """

    pyramid = True
    same_size = False
    on_logits = True
    ranks = (2, 4)
    wants_samples = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        steps: int = 8,
        metric: str = 'dist',
        tau: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_integer('FMKTLoss.steps', steps, 1)
        check_choice('FMKTLoss.metric', metric, METRICS)
        check_positive('FMKTLoss.tau', tau)
        check_integer('FMKTLoss.ignore_index', ignore_index)
        check_feature_and_logits('FMKTLoss', student_channels, teacher_channels)
        channels, num_classes = student_channels
        check_classes('FMKTLoss', num_classes)
        self.steps = steps
        self.metric = metric
        self.tau = tau
        self.ignore_index = ignore_index
        self.velocity = Velocity(channels)
        self.classify = nn.Linear(channels, num_classes)

    @in_fp32
    def forward(self, student: list[Tensor], teacher: list[Tensor], samples: Sequence[Any] | None = None) -> Tensor:
        """See :func:`fmkt_loss`.

        Args:
            student, teacher: a feature (B, C) or (B, C, H, W), and the logits (B, K) or (B, K, H, W).
            samples: B data samples.

        Raises:
            ValueError: the feature does not fit the logits, or the samples do not tell the classes.
        """
        feature, logits = student
        target = targets(samples, logits, self.ignore_index)
        return fmkt_loss(self.predict(feature, logits), logits, teacher[1], target, self.metric, self.tau)

    def predict(self, feature: Tensor, logits: Tensor) -> Tensor:
        """What each step predicts, (N, B, K) or (N, B, K, H, W), as the logits are; their mean is the flow's own."""
        check_feature(feature, logits)
        dense = logits.dim() == 4
        positions = feature.flatten(2).transpose(1, 2) if feature.dim() == 4 else feature[:, None]  # (B, P, C)
        ends = flow_ends(positions, self.velocity, self.steps)  # (N, B, P, C)
        if not dense:
            return self.classify(ends.mean(2))
        return self.classify(ends).movedim(-1, 2).unflatten(3, logits.shape[2:])
