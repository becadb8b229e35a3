"""Trains Meta-KD's refiners by what a step on their features does to the student's task loss."""

import logging
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsokd.augment import KnowledgeRefiner
from mmsokd.checks import check_integer, check_number, check_pair
from mmsokd.hooks.common import distiller_of, has_distiller, mean_over_ranks
from mmsokd.hooks.unrolling import has_checkpointing, task_losses, unrolled_passes
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class MetaRefineHook(Hook):
    r"""Steps the :class:`~mmsokd.augment.KnowledgeRefiner` of a distiller by its own Adam, before the student's steps.

    The student's weights w, adapters and all, make one virtual step on the whole training loss, in which the refiner's
    tensors phi have their say; what the student's own task loss says after it is what phi descends on:

    .. math:: \min_\phi L_{task} \big( w - \eta \nabla_w L(w, \phi) \big)

    The gradient is DARTS's of finite differences (:func:`~mmsokd.augment.unrolled_gradient`); that there is one inner
    step, on the batch that the student learns from next, and all numbers are ours. It takes four passes, of which one
    is the student's alone.

    Args:
        interval: iterations from one step to the next.
        lr, betas: of Adam.
        virtual_lr: :math:`\eta`.

    Raises:
        ValueError: an option is not valid, the distiller has no such refiner, or activations are checkpointed.
    """

    def __init__(
        self,
        interval: int = 1,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        virtual_lr: float = 0.01,
    ) -> None:
        check_integer('MetaRefineHook.interval', interval, 1)
        for key, value in (('lr', lr), ('virtual_lr', virtual_lr)):
            check_number(f'MetaRefineHook.{key}', value)
        check_pair('MetaRefineHook.betas', betas, 0, 1, closed=False)
        self.interval = interval
        self.adam = dict(lr=lr, betas=tuple(betas))
        self.virtual_lr = virtual_lr
        self._necks: dict[str, KnowledgeRefiner] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._skipped = False

    def before_run(self, runner: Runner) -> None:
        """Find the refiners; their optimizers must be there before a checkpoint is resumed."""
        if not has_distiller(runner):
            return  # a plain student is tested with the distiller's hooks, or test-time augmentation wraps the model
        refine = distiller_of(runner).refine
        necks = {} if refine is None else refine.necks
        self._necks = {name: neck for name, neck in necks.items() if isinstance(neck, KnowledgeRefiner)}
        for name, neck in self._necks.items():
            neck.is_trained = True
            self._optimizers[name] = torch.optim.Adam(list(neck.searched_tensors().values()), **self.adam)

    def before_train(self, runner: Runner) -> None:
        """See that there is something to train, and that it can be."""
        if not self._necks:
            found = distiller_of(runner).refine
            kinds = None if found is None else {type(neck).__name__ for neck in found.necks.values()}
            raise ValueError(
                f"MetaRefineHook: expected a distiller with refine=dict(type='mmsokd.KnowledgeRefiner'), found {kinds}"
            )
        if has_checkpointing(runner):
            raise ValueError(
                'MetaRefineHook: expected no activation checkpointing (with_cp, activation_checkpointing), which '
                'torch.autograd.grad does not pass, found it'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Every ``interval`` iterations, the extra passes and a step of each refiner."""
        if runner.iter % self.interval:
            return
        gradients = unrolled_passes(runner, data_batch, self._necks, self.virtual_lr, task_losses)
        for name, gradient in gradients.items():
            gradient = mean_over_ranks(gradient)
            if not all(value.isfinite().all() for value in gradient.values()):
                self._warn_of_skipped_step(name)
                continue
            for key, tensor in self._necks[name].searched_tensors().items():
                tensor.grad = gradient[key].to(tensor)
            self._optimizers[name].step()
            self._optimizers[name].zero_grad(set_to_none=True)

    def _warn_of_skipped_step(self, name: str) -> None:
        if not self._skipped:
            print_log(
                f'refiner {name}: a step is left out, since its gradient is NaN or Inf on some rank. Under fp16 a '
                'scaled gradient may overflow in the first steps. Told once',
                'current',
                logging.WARNING,
            )
        self._skipped = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the optimizers; the refiners themselves are in the model's state dict."""
        checkpoint['meta_refine'] = {name: adam.state_dict() for name, adam in self._optimizers.items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Resume the optimizers."""
        if not runner._resume:
            return
        for name, state in checkpoint.get('meta_refine', {}).items():
            if name in self._optimizers:
                self._optimizers[name].load_state_dict(state)
