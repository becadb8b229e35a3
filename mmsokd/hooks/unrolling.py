"""The gradient of what refines the teacher's feature, through one virtual step of the student."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mmsokd.augment import FeatureRefiner, ImageAugmenter, unrolled_gradient
from mmsokd.distillers import Distiller
from mmsokd.hooks.common import distiller_of

Losses = Callable[[Distiller, dict], dict[str, Tensor]]


def has_checkpointing(runner: Runner) -> bool:
    """Whether activations are checkpointed, which ``torch.autograd.grad`` does not pass."""
    checkpointed = any(getattr(module, 'with_cp', False) for module in distiller_of(runner).modules())
    return checkpointed or bool(runner.cfg.get('activation_checkpointing'))


def training_losses(distiller: Distiller, data: dict) -> dict[str, Tensor]:
    """All of a training step's, of a preprocessed batch."""
    return distiller(**data, mode='loss')


def task_losses(distiller: Distiller, data: dict) -> dict[str, Tensor]:
    """The student's own alone."""
    return distiller.student(**data, mode='loss')


def unrolled_passes(
    runner: Runner, data_batch: Any, necks: Mapping[str, FeatureRefiner], lr: float, outer: Losses = training_losses
) -> dict[str, dict[str, Tensor]]:
    """The gradient of the ``outer`` losses after a virtual step on the training's, with one random state in every pass.

    The step that follows draws as if these passes had not been. With several ranks each makes the virtual step of its
    own batch; nothing is averaged here.

    Args:
        runner: of the training.
        data_batch: as the data loader gives it; it is not changed.
        necks: name -> what refines.
        lr: of the virtual step.
        outer: what the step is judged by.

    Returns: name -> the gradient of each tensor that ``neck.exposed`` gives, on its device.
    """
    distiller = distiller_of(runner)
    weights = [p for p in distiller.parameters() if p.requires_grad]
    device = weights[0].device
    with ExitStack() as stack:
        chis = {name: stack.enter_context(neck.exposed(device)) for name, neck in necks.items()}
        restore = stack.enter_context(_untouched(distiller))
        stack.callback(_rewinding(device))
        # A copy: some batch augmentations change the boxes in place, and the ordinary step comes after.
        data = distiller.data_preprocessor(copy.deepcopy(data_batch), True)
        rewind = _rewinding(device)

        def total(losses: Losses) -> Tensor:
            restore()  # a bank or a clock of draws that the last pass moved would make this one another function
            rewind()
            # A fresh autocast each time: it caches half-precision weights, which the passes change.
            with runner.optim_wrapper.optim_context(distiller):
                return distiller.parse_losses(losses(distiller, data))[0]

        leaves = [leaf for chi in chis.values() for leaf in chi.values()]
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)  # AmpOptimWrapper's
        scale = scaler.get_scale() if scaler is not None else 1.0
        found = unrolled_gradient(
            lambda: total(training_losses), weights, leaves, lr=lr, loss_scale=scale, outer=lambda: total(outer)
        )
        gradients = iter(found)
        return {name: {key: next(gradients) for key in chi} for name, chi in chis.items()}


def _rewinding(device: torch.device) -> Callable[[], None]:
    """A function that sets the random states of host and device back to what they are now."""
    host, own = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == 'cuda' else None

    def rewind() -> None:
        torch.set_rng_state(host)
        if own is not None:
            torch.cuda.set_rng_state(own, device)

    return rewind


@contextmanager
def _untouched(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Undo what extra passes do to buffers (BatchNorm's running statistics, memory banks) and to TST's clock of draws.

    Gives a function that does so at once.
    """
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # PyTorch does not count what a normalization does to its statistics.
    norms = (module for module in model.modules() if isinstance(module, _NormBase) and module.training)
    uncounted = {id(buffer) for module in norms for buffer in module.buffers(recurse=False)}
    versions = [buffer._version for buffer, _ in saved]
    clocks = [(module, module.draws) for module in model.modules() if isinstance(module, ImageAugmenter)]

    @torch.no_grad()
    def restore() -> None:
        for i, (buffer, value) in enumerate(saved):
            if buffer._version != versions[i] or id(buffer) in uncounted:  # a bank may be large, and not be used
                buffer.copy_(value)
                versions[i] = buffer._version
        for augmenter, draws in clocks:
            augmenter.draws = draws

    try:
        yield restore
    finally:
        restore()
