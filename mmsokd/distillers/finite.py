"""Stops a training whose losses are no longer numbers, without waiting for the device."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class FiniteGuard:
    """Raises as soon as a loss is NaN or Inf, naming it.

    On the CPU that is at once, before the backward. On a GPU the flags of a step are copied asynchronously and read in
    the first later step that finds them arrived, so that no step waits; :meth:`check` with ``wait`` reads what is left.
    """

    def __init__(self) -> None:
        self._flying: deque[tuple[list[str], Tensor, Any]] = deque()

    def __deepcopy__(self, memo: dict) -> 'FiniteGuard':
        return FiniteGuard()  # what is under way belongs to the original's step

    @torch.compiler.disable
    def watch(self, losses: Mapping[str, Any]) -> None:
        """Look at the entries of a loss dict that will be summed.

        Raises:
            FloatingPointError: one of this step's losses (CPU), or an earlier step's (GPU), is not finite.
        """
        values = {name: value for name, value in losses.items() if 'loss' in name}
        sums = [sum(x.detach().float().sum() for x in _tensors(value)) for value in values.values()]
        if not sums:
            return
        flags = torch.isfinite(torch.stack(sums))
        if flags.is_cuda:
            host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._flying.append((list(values), host, event))
        else:
            self._flying.append((list(values), flags, None))
        self.check()

    def check(self, wait: bool = False) -> None:
        """Read the flags that have arrived; all of them if ``wait``."""
        while self._flying:
            names, flags, event = self._flying[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    return
            self._flying.popleft()
            bad = [name for name, fine in zip(names, flags.tolist(), strict=True) if not fine]
            if bad:
                raise FloatingPointError(
                    f'{", ".join(bad)}: expected a finite loss, found NaN or Inf; training stops here and the last '
                    'checkpoint is left as it is. Lower the learning rate or this loss_weight, clip gradients '
                    '(optim_wrapper.clip_grad), or train in fp32'
                )


def _tensors(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]
