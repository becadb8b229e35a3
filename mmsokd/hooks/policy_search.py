"""Searches the augmentation policy while the student trains, then freezes it."""

import logging
import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from mmsokd.augment import FeatureAugmentationNeck
from mmsokd.checks import check_choice, check_integer, check_number, check_pair
from mmsokd.hooks.common import (
    distiller_of,
    has_distiller,
    mean_over_ranks,
    ops_state,
    record_policy,
    save_as_it_is,
)
from mmsokd.hooks.unrolling import has_checkpointing, unrolled_passes
from mmsokd.registry import HOOKS

_LINES = 100  # of policy.json, for the whole search
_CHANGE = 0.02  # of a chance or a magnitude, from 0 to 1: what is less was no search


@HOOKS.register_module()
class PolicySearchHook(Hook):
    """Steps the policy's own Adam during the first part of the training; after that the policy is only sampled.

    It steps as often as the student's optimizer: under gradient accumulation by the mean of the gradients.

    The policy's evolution is in ``vis_data/policy.json`` of the run's folder, a hundred lines for the whole search,
    which ``tools/analysis/policy.py`` plots.

    The optimizer's settings are those of the authors' development fork. The search's length there is 20 of 240 (CIFAR)
    and 5 of 100 epochs (ImageNet); the default here, a twelfth of the training, is ours for 12- and 24-epoch schedules.

    Args:
        mode: ``'fused'`` [ours], first order: the gradient of L_aug that the training forward gives at no extra pass;
            ``'unrolled'`` [authors' fork]: the whole training loss after one virtual SGD step, about four extra passes.
        search_epochs: epochs to search for, in every loop passes over the training set.
        search_iters: iterations to search for, instead.
        lr, betas: of Adam.
        weight_decay: pulls the policy back to its start [ours]. The authors' fork has Adam's own, towards zero: a
            sub-policy is drawn once in 36 steps, and between its draws Adam makes a full step of any decay, however
            small, so that magnitudes would leave 0.5, the identity, for one end of their range.
        virtual_lr: step of the virtual SGD, for ``'unrolled'``.
        ratio_range: warn when the mean ``||F~_t|| / ||F_t||`` leaves it: L_aug rewards a blank feature.
        log_interval: iterations between two looks at that ratio.

    Raises:
        ValueError: an option is not valid, the search is longer than the schedule, or it is unrolled where activations
            are checkpointed.
    """

    priority = 'BELOW_NORMAL'  # after EMAHook, which changes what is saved

    def __init__(
        self,
        mode: str = 'fused',
        search_epochs: int | None = None,
        search_iters: int | None = None,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        virtual_lr: float = 0.01,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        log_interval: int = 50,
    ) -> None:
        check_choice('PolicySearchHook.mode', mode, ['fused', 'unrolled'])
        if search_epochs is not None and search_iters is not None:
            raise ValueError('PolicySearchHook: expected search_epochs or search_iters, found both')
        for key, value in (('search_epochs', search_epochs), ('search_iters', search_iters)):
            if value is not None:
                check_integer(f'PolicySearchHook.{key}', value, 0)
        for key, value in (('lr', lr), ('weight_decay', weight_decay), ('virtual_lr', virtual_lr)):
            check_number(f'PolicySearchHook.{key}', value)
        check_pair('PolicySearchHook.betas', betas, 0, 1, closed=False)
        check_pair('PolicySearchHook.ratio_range', ratio_range, 0, math.inf)
        check_integer('PolicySearchHook.log_interval', log_interval)
        self.mode = mode
        self.search_epochs = search_epochs
        self.search_iters = search_iters
        self.adam = dict(lr=lr, betas=tuple(betas))
        self.weight_decay = weight_decay
        self.virtual_lr = virtual_lr
        self.ratio_range = ratio_range
        self.log_interval = log_interval
        self._necks: dict[str, FeatureAugmentationNeck] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._start: dict[str, dict[str, Tensor]] = {}
        self._start_ops: dict[str, dict[str, tuple[float, float]]] = {}
        self._end = 0
        self._warned = False
        self._skipped = False

    def before_run(self, runner: Runner) -> None:
        """Find the policies; their optimizers must be there before a checkpoint is resumed."""
        if not has_distiller(runner):
            return  # a plain student is tested with the distiller's hooks, or test-time augmentation wraps the model
        distiller = distiller_of(runner)
        if distiller.refine is None:
            return
        self._necks = {n: x for n, x in distiller.refine.necks.items() if isinstance(x, FeatureAugmentationNeck)}
        for name, neck in self._necks.items():
            if self.mode == 'unrolled' and (neck.at is not None or neck.estimator == 'relax'):
                raise ValueError(
                    "PolicySearchHook.mode: expected 'fused' where refine has 'at' or estimator='relax', "
                    "found 'unrolled'"
                )
            # One policy's few numbers stay on the host (see Policy); so does their optimizer.
            self._optimizers[name] = torch.optim.Adam(list(neck.search_parameters().values()), **self.adam)
            self._start[name] = {key: value.clone() for key, value in neck.search_parameters().items()}
            if runner.iter == 0:  # FlexibleRunner has resumed already, and the search has begun elsewhere
                self._start_ops[name] = neck.policy.expected_ops()

    def before_train(self, runner: Runner) -> None:
        """Find how long to search."""
        checkpointed = has_checkpointing(runner)  # says so beside a model that is no distiller, in every mode
        if self.mode == 'unrolled' and checkpointed:
            raise ValueError(
                "PolicySearchHook.mode: expected 'fused' beside activation checkpointing (with_cp, "
                "activation_checkpointing), which torch.autograd.grad does not pass, found 'unrolled'"
            )
        self._end = self._search_end(runner)
        self._record(runner, runner.iter)

    def _search_end(self, runner: Runner) -> int:
        """The first iteration that no longer searches."""
        last = runner.max_iters
        if self.search_epochs is not None:
            end, key = self.search_epochs * len(runner.train_dataloader), f'search_epochs={self.search_epochs}'
        elif self.search_iters is not None:
            end, key = self.search_iters, f'search_iters={self.search_iters}'
        else:
            return math.ceil(last / 12)
        if end > last:
            raise ValueError(
                f'PolicySearchHook.{key}: expected a search within the schedule of {last} iterations '
                f'({runner.max_epochs} epochs), found one of {end} iterations'
            )
        return end

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Switch the search on or off by the clock; in ``unrolled`` mode, make the four extra passes."""
        searching = runner.iter < self._end
        for neck in self._necks.values():
            neck.searching = searching and self.mode == 'fused'
        if searching and self.mode == 'unrolled' and self._necks:
            for name, gradient in self._unrolled(runner, data_batch).items():
                self._necks[name].push_gradient(gradient)
            if self._is_update(runner):
                self._step()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Step each policy where the student's optimizer has stepped, watch the ratio, and log the table."""
        if not self._necks:
            return
        if self.mode == 'fused' and runner.iter < self._end and self._is_update(runner):
            self._step()
        if runner.iter + 1 == self._end:
            for neck in self._necks.values():
                neck.searching = False
            runner.logger.info(f'policy search ends at iteration {self._end}; expected ops:\n{self._table()}')
            self._watch_change(runner)
        if self.every_n_train_iters(runner, self.log_interval):
            self._watch_ratio(runner, outputs)
        done = runner.iter + 1
        if done == self._end or (done < self._end and done % math.ceil(self._end / _LINES) == 0):
            self._record(runner, done)

    def _is_update(self, runner: Runner) -> bool:
        """Whether the student's optimizer steps in this iteration, and not only accumulates: the policy's steps then.

        With what is left, too, when the search ends in between.
        """
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        return (runner.iter + 1) % counts == 0 or runner.iter + 1 in (self._end, runner.max_iters)

    def _step(self) -> None:
        """Step each policy by the mean of its gradients since the last step."""
        for name, neck in self._necks.items():
            gradient = neck.pop_gradient()
            if gradient is None:
                continue
            optimizer = self._optimizers[name]
            gradient = mean_over_ranks(gradient)
            if not all(value.isfinite().all() for value in gradient.values()):
                self._warn_of_skipped_step(name)
                continue
            for key, parameter in neck.search_parameters().items():
                decay = self.weight_decay * (parameter - self._start[name][key])
                parameter.grad = gradient[key].to(parameter) + decay
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            neck.policy.clamp_()

    def _warn_of_skipped_step(self, name: str) -> None:
        if not self._skipped:
            print_log(
                f'policy {name}: a step of the search is left out, since its gradient is NaN or Inf on some rank. '
                'Under fp16 a scaled gradient may overflow in the first steps; elsewhere look at sokd.aug. Told once',
                'current',
                logging.WARNING,
            )
        self._skipped = True

    def _unrolled(self, runner: Runner, data_batch: Any) -> dict[str, dict[str, Tensor]]:
        """The gradient of the training loss after a virtual step, on the host."""
        found = unrolled_passes(runner, data_batch, self._necks, self.virtual_lr)
        return {name: {key: value.cpu() for key, value in gradient.items()} for name, gradient in found.items()}

    def _watch_change(self, runner: Runner) -> None:
        """Tell of a policy that has not been searched, as by a few steps of a rate that was made for thousands."""
        for name, start in self._start_ops.items():
            ops = self._necks[name].policy.expected_ops()
            change = max(abs(now - then) for op in ops for now, then in zip(ops[op], start[op], strict=True))
            if change < _CHANGE:
                runner.logger.warning(
                    f'policy {name}: the search ends where it began, its chances and magnitudes within {change:.1g}. '
                    f'Search longer, or raise PolicySearchHook.lr, {self.adam["lr"]}'
                )

    def _watch_ratio(self, runner: Runner, outputs: Any) -> None:
        ratio = (outputs or {}).get('sokd.norm_ratio')
        low, high = self.ratio_range
        if ratio is None or self._warned or not (float(ratio) < low or float(ratio) > high):  # NaN: no term is refined
            return
        self._warned = True
        runner.logger.log(
            logging.WARNING,
            f'sokd.norm_ratio is {float(ratio):.2f}, outside [{low}, {high}]: the policy blanks or inflates the '
            f"teacher's feature. Search for fewer epochs, or lower PolicySearchHook.lr. Expected ops:\n{self._table()}",
        )

    def _record(self, runner: Runner, iteration: int) -> None:
        """Each policy's entropy, sub-policies' probabilities, and operations' firing rates and magnitudes."""
        states = {}
        for name, neck in self._necks.items():
            policy = neck.policy
            chances = [round(p, 7) for p in policy.alpha.softmax(0).tolist()]
            ops = ops_state(policy.expected_ops())
            states[name] = dict(entropy=round(policy.entropy(), 5), sub_policies=chances, **ops)
        record_policy(runner, iteration, states)

    def _table(self) -> str:
        lines = []
        for name, neck in self._necks.items():
            lines += [f'  policy {name}: entropy {neck.policy.entropy():.3f} nats']
            for op, (chance, magnitude) in neck.policy.expected_ops().items():
                lines += [f'    {op:<15} fires {chance:.3f}, magnitude {magnitude:.3f}']
        return '\n'.join(lines)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the optimizers; the policies themselves are in the model's state dict."""
        checkpoint['policy_search'] = {name: adam.state_dict() for name, adam in self._optimizers.items()}
        if self._necks:
            save_as_it_is(checkpoint, distiller_of(runner).refine.necks, 'refine.necks.')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Resume the optimizers."""
        if not runner._resume:
            return
        for name, state in checkpoint.get('policy_search', {}).items():
            if name in self._optimizers:
                self._optimizers[name].load_state_dict(state)
