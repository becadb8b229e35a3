"""KCD's channel matching: a student learns from those of its teacher's channels that resemble its own."""

import torch
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmsokd.adapters.conv import MODES, ResizeAdapter
from mmsokd.checks import check_integer
from mmsokd.registry import MODELS

_CONSTANT = 1e-12  # a variance that is less than this part of the mean square is rounding


def moments(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all positions of all pictures, from which :func:`correlation` follows; those of batches add up.

    Args:
        student, teacher: maps (N, C_s, H, W) and (N, C_t, H, W).

    Returns: in float64, products (C_s + 1, C_t + 1) of the channels and a channel of ones, and squares (C_s) and (C_t).
    """
    s, t = (x.double().transpose(0, 1).flatten(1) for x in (student, teacher))  # (C, N H W)
    ones = torch.ones_like(s[:1])
    return torch.cat([s, ones]) @ torch.cat([t, ones]).t(), s.square().sum(1), t.square().sum(1)


def correlation(products: Tensor, student_squares: Tensor, teacher_squares: Tensor) -> Tensor:
    """Pearson's, of each of the student's channels with each of the teacher's: (C_s, C_t), from :func:`moments`.

    It is 0 for a channel that is constant, or not finite.
    """
    means = products / products[-1, -1]
    covariance = means[:-1, :-1] - means[:-1, -1:] * means[-1:, :-1]
    s = _deviation(means[:-1, -1], student_squares / products[-1, -1])
    t = _deviation(means[-1, :-1], teacher_squares / products[-1, -1])
    return (covariance / (s[:, None] * t)).nan_to_num(0.0, 0.0, 0.0)


def _deviation(mean: Tensor, mean_square: Tensor) -> Tensor:
    variance = mean_square - mean**2
    return torch.where(variance > _CONSTANT * mean_square, variance, torch.inf).sqrt()


def best_match(correlation: Tensor) -> Tensor:
    """Which of the teacher's channels each of the student's gets, no two the same: those of the largest total.

    Args:
        correlation: (C_s, C_t), C_s <= C_t.

    Returns: (C_s), int64, on the CPU.
    """
    _, columns = linear_sum_assignment(correlation.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


@MODELS.register_module()
class ChannelMatching(ResizeAdapter):
    r"""The teacher's channels in the order of the student's (after Han et al., KCD, arXiv:2103.16844).

    .. math:: \pi = \underset{\pi}{\mathrm{arg\,max}} \sum_c \mathrm{corr}(F_s^c, F_t^{\pi(c)}), \qquad
        F_t^c \leftarrow F_t^{\pi(c)}

    over all injective maps of the student's channels into the teacher's. So the student needs no learned map to the
    teacher's width: a wider teacher gives as many channels as the student has, and a narrower one is refused. The
    abstract says that networks differ in what their channels stand for, and that the teacher's knowledge is made
    consistent with the student's. The rest is ours; that channels are assigned one to one is after Matching Guided
    Distillation (arXiv:2008.09958).

    Correlations are over the positions of ``batches`` training steps, of all ranks. They are gathered from the steps
    themselves, at the beginning of every ``interval``, and the match changes when they are complete. It is not left
    arbitrary until then: the first step is matched on its own batch, and those that follow it on all so far. A term
    that begins between two looks has the match of its first batch until the next one is complete. The sums and the
    match are buffers, so that a resumed run goes on with both.

    Args:
        in_channels, out_channels: the student's and the teacher's; the distiller fills them in.
        interval: iterations from one matching to the next.
        batches: from how many iterations each is made; at most ``interval``.
        resize: how the student's map is brought to the teacher's size: None (refused), or an interpolation mode.

    Raises:
        ValueError: the teacher is narrower, or an option is not valid.
    """

    keeps_channels = False  # the teacher's have to follow
    picks_channels = True
    resizes = (None, *MODES)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        interval: int = 1000,
        batches: int = 20,
        resize: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(resize, init_cfg)
        check_integer('ChannelMatching.interval', interval, 1)
        check_integer('ChannelMatching.batches', batches, 1)
        if batches > interval:
            raise ValueError(f'ChannelMatching.batches: expected at most the interval {interval}, found {batches}')
        if out_channels < in_channels:
            raise ValueError(
                f'ChannelMatching: expected a teacher of at least the {in_channels} channels of its student, found '
                f"{out_channels}; give dict(type='mmsokd.ConvAdapter')"
            )
        self.interval = interval
        self.batches = batches
        self.register_buffer('order', torch.arange(in_channels))
        self.register_buffer('products', torch.zeros(in_channels + 1, out_channels + 1, dtype=torch.float64))
        self.register_buffer('student_squares', torch.zeros(in_channels, dtype=torch.float64))
        self.register_buffer('teacher_squares', torch.zeros(out_channels, dtype=torch.float64))
        self.register_buffer('look', torch.tensor(-1))  # the interval that the sums are of
        self._last: int | None = None

    def match(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The teacher's channels that match the student's, in their order; in training mode it looks at both first.

        Args:
            student: what :meth:`forward` gave, (N, C_s, H, W).
            teacher: (N, C_t, H, W).

        Returns: (N, C_s, H, W).
        """
        if self.training:
            self._watch(student, teacher)
        return teacher.index_select(1, self.order)

    @torch.no_grad()
    def _watch(self, student: Tensor, teacher: Tensor) -> None:
        """Gather, or match, if it is time for it."""
        now = MessageHub.get_current_instance().runtime_info.get('iter', 0)
        place, is_first = now % self.interval, self._is_first(now)
        if place >= self.batches and not is_first:
            return
        totals = (self.products, self.student_squares, self.teacher_squares)
        # On the device. A term may rest when a look begins, and a state may be of a former training.
        goes_on = (self.look == now // self.interval) & (place > 0)
        for total, found in zip(totals, moments(student, teacher), strict=True):
            all_reduce(found)
            total.copy_(torch.where(goes_on, total + found, found))
        self.look.fill_(now // self.interval)
        if place == self.batches - 1 or now < self.batches or is_first:
            self.order.copy_(best_match(correlation(*totals)))

    def _is_first(self, now: int) -> bool:
        """Whether nothing has been matched yet: a term may begin late.

        The buffers tell, since they are resumed, and restored after extra passes. They wait for the device, and so are
        asked only where the step before was not seen.
        """
        followed, self._last = self._last == now - 1, now
        return not followed and not self.products[-1, -1].item()
