"""Do the terms leave the student's own losses a say?"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

ITERATIONS, MOST = 50, 4.0
_OURS = ('distill.', 'sokd.')
_OTHERS = ('online_teacher.', 'mutual.')  # what a teacher learns that is trained beside its student
_KEYS = {
    'sokd.loss_agreement': 'model.areas.agreement_weight',
    'sokd.loss_area': 'model.areas.area_weight',
    'sokd.loss_anchor': 'model.areas.anchor_weight',
}


class Drowning(NamedTuple):
    """A loss that is much larger than what the student itself is taught by."""

    name: str
    ratio: float  # to the student's own losses
    key: str  # what lowers it


class Balance:
    """Adds up the losses of a training's first iterations, and finds those that drown the student's own."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: Mapping[str, Tensor]) -> list[Drowning]:
        """One iteration's log, all scalars. Waits for the device once, in the last of ``ITERATIONS``.

        Returns: in that iteration, each loss that comes to more than ``MOST`` times the student's own together.
        """
        if self._count >= ITERATIONS:
            return []
        self._count += 1
        for name, value in losses.items():
            if 'loss' in name and name != 'loss' and not name.startswith(_OTHERS):  # 'loss' is MMEngine's for the sum
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        if self._count < ITERATIONS or not self._sums:
            return []
        sums = dict(zip(self._sums, torch.stack([*self._sums.values()]).tolist(), strict=True))
        own = sum(value for name, value in sums.items() if not name.startswith(_OURS))
        # From the loss of refine.at's regressor the student does not learn.
        ours = {k: value for k, value in sums.items() if k.startswith(_OURS) and k != 'sokd.loss_fit'}
        return [Drowning(name, value / own, _key(name)) for name, value in ours.items() if value > MOST * own > 0]


def _key(name: str) -> str:
    return _KEYS.get(name, f'model.terms.{name.removeprefix("distill.")}.loss_weight')
