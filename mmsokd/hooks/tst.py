"""TST's bursts: now and then the augmenter learns which pictures the teacher knows and the student does not."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mmsokd.augment import ImageAugmenter
from mmsokd.checks import check_integer, check_positive, check_range
from mmsokd.distillers import TSTDistiller
from mmsokd.hooks.common import (
    distiller_of,
    has_distiller,
    mean_over_ranks,
    ops_state,
    record_policy,
    save_as_it_is,
)
from mmsokd.hooks.seed import Batch
from mmsokd.losses.flipped import task_losses
from mmsokd.registry import HOOKS

# A pass whose loss falls by less than both has stopped falling [authors' code].
_FALL, _RELATIVE_FALL, _DECAY = 0.02, 0.02, 0.9
# Draws between two bursts' clocks, and from the training's: 2^32 over the golden ratio, so that they lie far apart
# among the 2^32 seeds that PyTorch tells apart.
_FAR = 2_654_435_769
_REHEARSED = 2  # pictures


@HOOKS.register_module()
class TSTHook(Hook):
    """Stage II of TST (arXiv 2212.05422): before given epochs, passes over the training set that move the augmenter.

    Student and teacher are frozen, and the student is in eval mode. The optimizer is SGD, made anew for every burst;
    its rate falls by a tenth after each pass whose mean loss fell by less than 0.02 and by less than 2 %. The authors'
    bursts:

    =========== ============ ============== ==============
    task        epochs       of             passes
    =========== ============ ============== ==============
    CIFAR-100   30, 90       240            30 (5 to 30)
    ImageNet    10, 25       100            5
    COCO        6, 12        24             1
    Cityscapes  0, 6, 12     not known      1
    =========== ============ ============== ==============

    How the augmenter stands at the start and after each burst is in ``vis_data/policy.json`` of the run's folder, which
    ``tools/analysis/policy.py`` plots.

    A burst is a function of the weights, the seed and its time: it has a data loader and random numbers of its own, so
    that the training's are what they would be without it, and a run that is resumed makes the same one again.

    Args:
        epochs: before which epochs, counted from 0; in a loop by iterations, passes over the training set. An empty
            list is the control: the doubled batch with the untrained augmenter.
        iters: before which iterations, instead.
        passes: over the training set, a burst.
        max_batches: end a pass after so many batches [ours].
        lr, momentum: of SGD.

    Raises:
        ValueError: an option is not valid, a burst is outside of the schedule, or the losses of a burst cannot be
            computed: one is tried on two pictures before anything is trained.
        TypeError: the model is no :class:`~mmsokd.distillers.TSTDistiller`.
    """

    priority = 'BELOW_NORMAL'  # after EMAHook, which changes what is saved

    def __init__(
        self,
        epochs: Sequence[int] | None = None,
        iters: Sequence[int] | None = None,
        passes: int = 1,
        max_batches: int | None = None,
        lr: float = 0.01,
        momentum: float = 0.9,
    ) -> None:
        if (epochs is None) == (iters is None):
            raise ValueError(
                'TSTHook: expected one of epochs and iters, when the bursts are (an empty list: none, the control), '
                f'found {"neither" if epochs is None else "both"}'
            )
        self._key, self._times = ('epochs', epochs) if iters is None else ('iters', iters)
        if not isinstance(self._times, Sequence) or isinstance(self._times, str):
            raise ValueError(f'TSTHook.{self._key}: expected a list of integers, found {self._times!r}')
        for time in self._times:
            check_integer(f'TSTHook.{self._key}', time, 0)
        check_integer('TSTHook.passes', passes, 1)
        if max_batches is not None:
            check_integer('TSTHook.max_batches', max_batches, 1)
        check_positive('TSTHook.lr', lr)
        check_range('TSTHook.momentum', momentum, 0, 1, closed=False)
        self.passes = passes
        self.max_batches = max_batches
        self.sgd = dict(lr=lr, momentum=momentum)
        self._starts: set[int] = set()

    def before_run(self, runner: Runner) -> None:
        """Look at the model before anything is trained."""
        if not has_distiller(runner):
            return  # a plain student is tested with the distiller's hooks
        distiller = distiller_of(runner)
        if not isinstance(distiller, TSTDistiller):
            raise TypeError(
                f"model.type: expected 'mmsokd.TSTDistiller' beside TSTHook, found {type(distiller).__name__}"
            )
        if self._times:
            task_losses(distiller.student)

    def before_train(self, runner: Runner) -> None:
        """Find the iterations before which there is a burst, and try a burst's losses."""
        distiller_of(runner)  # a plain model can be tested beside this hook, and not trained
        length = 1 if self._key == 'iters' else _iterations_a_pass(runner)
        self._starts = {time * length for time in self._times}
        late = [time for time in self._times if time * length >= runner.max_iters]
        if late:
            raise ValueError(
                f'TSTHook.{self._key}: expected times within the schedule of {runner.max_iters} iterations '
                f'({runner.max_epochs} epochs), found {late[0]}, which is iteration {late[0] * length}'
            )
        if self._times:
            self._rehearse(runner)
        self._record(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """A burst, if it is time."""
        if runner.iter in self._starts:
            distiller = distiller_of(runner)
            with _apart(runner.iter, distiller.augmenter), _evaluating(distiller):
                self._burst(runner)
            self._record(runner)

    def _rehearse(self, runner: Runner) -> None:
        """What fails in a burst, perhaps in days, shall fail now."""
        distiller, loader = distiller_of(runner), _loader(runner)
        with _apart(runner.iter, distiller.augmenter), _evaluating(distiller):
            first = next(iter(loader.batch_sampler))[:_REHEARSED]
            data = distiller.data_preprocessor(loader.collate_fn(loader.dataset.__getitems__(first)), True)
            with torch.no_grad(), runner.optim_wrapper.optim_context(distiller):
                distiller.rehearse_search(data['inputs'], data['data_samples'])

    def _record(self, runner: Runner) -> None:
        record_policy(runner, runner.iter, dict(augmenter=ops_state(distiller_of(runner).augmenter.expected_ops())))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The augmenter is saved as it is, also beside EMAHook."""
        save_as_it_is(checkpoint, distiller_of(runner).augmenter, 'augmenter.')

    def _burst(self, runner: Runner) -> None:
        augmenter = distiller_of(runner).augmenter
        optimizer = torch.optim.SGD(list(augmenter.tensors().values()), **self.sgd)
        loader = _loader(runner)
        previous = None
        for number in range(self.passes):
            loader.batch_sampler.number = number
            losses = self._pass(runner, loader, optimizer)
            now = sum(losses.values())
            runner.logger.info(
                f'TST, before iteration {runner.iter}, pass {number + 1} of {self.passes}: L_aug {now:.4f} (teacher '
                f'{losses["teacher"]:.4f}, student {losses["student"]:.4f}), lr {optimizer.param_groups[0]["lr"]:.2g}'
            )
            if previous is not None and previous - now < min(_FALL, _RELATIVE_FALL * previous):
                optimizer.param_groups[0]['lr'] *= _DECAY
            previous = now
        table = (
            f'  {name:<11} fires {rate:.3f}' + (f', magnitude {level:.3f}' if level is not None else '')
            for name, (rate, level) in augmenter.expected_ops().items()
        )
        runner.logger.info('TST, the augmenter is now:\n' + '\n'.join(table))

    def _pass(self, runner: Runner, loader: DataLoader, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """One pass; the mean of both losses over its batches, and over the ranks."""
        distiller = distiller_of(runner)
        tensors = distiller.augmenter.tensors()
        # AmpOptimWrapper's. The training's scaler is left alone: what overflows here need not overflow there.
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        total, count, left_out = torch.zeros(2), 0, 0
        for batch in loader:
            chi = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
            data = distiller.data_preprocessor(batch, True)
            # A fresh autocast each time, as in training. Whatever of the networks is trained gets no gradient here.
            with runner.optim_wrapper.optim_context(distiller):
                losses = distiller.search_losses(data['inputs'], data['data_samples'], chi)
            both = torch.stack([losses.pop('teacher'), losses.pop('student')])
            gradient, scale = _gradient(both.sum(), chi, scale)
            both = both.detach()  # nothing of the graph is left beside the next one
            count += 1
            if gradient is None:
                left_out += 1
            else:
                for name, value in tensors.items():
                    value.grad = gradient[name]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += both.float().cpu()
            if count == self.max_batches:
                break
        if left_out:
            print_log(
                f'TST, before iteration {runner.iter}: {left_out} of {count} batches moved nothing, since their '
                'gradients are not finite',
                runner.logger,
                logging.WARNING,
            )
        means = mean_over_ranks(dict(mean=total / max(count - left_out, 1)))['mean'].tolist()
        return dict(zip(('teacher', 'student'), means, strict=True))


def _gradient(objective: Tensor, chi: Mapping[str, Tensor], scale: float) -> tuple[dict[str, Tensor] | None, float]:
    """The mean of the ranks' gradients, and the scale by which it was finite.

    Under fp16 a scaled one may overflow: then once more with a sixteenth of the scale, down to none. What is not finite
    then gives None, and the scale is as before. The mean is the same on every rank, and so is what is done.
    """
    tried = scale
    while True:
        # Zeros where no operator with a magnitude was drawn.
        gradient = torch.autograd.grad(
            objective * tried, list(chi.values()), retain_graph=tried > 1, materialize_grads=True, allow_unused=True
        )
        gradient = mean_over_ranks({name: g / tried for name, g in zip(chi, gradient, strict=True)})
        if all(g.isfinite().all() for g in gradient.values()):
            return gradient, tried
        if tried <= 1:
            return None, scale
        tried = max(tried / 16, 1.0)


def _iterations_a_pass(runner: Runner) -> int:
    """How many iterations of the training see its set once."""
    loader = runner.train_dataloader
    if len(loader.sampler) < len(loader.dataset) or get_dist_info()[1] == 1:
        return len(loader)
    return -(-len(loader) // get_dist_info()[1])  # MMEngine's InfiniteSampler does not tell of the ranks


class _Shuffled(Sampler):
    """Batches of this rank's part of a permutation of ``size`` pictures, another one for each pass ``number``."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self._size, self._batch_size, self._seed, self.number = size, batch_size, seed, 0
        self._rank, self._ranks = get_dist_info()

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self._seed + self.number)
        order = torch.randperm(self._size, generator=generator).tolist()
        order += order[: -self._size % self._ranks]  # every rank makes as many steps
        order = order[self._rank :: self._ranks]
        for i in range(len(self)):
            indices = order[i * self._batch_size : (i + 1) * self._batch_size]
            yield Batch(indices, (self._seed, self._rank, self.number, i, 1))  # 0 is the training's

    def __len__(self) -> int:
        mine = -(-self._size // self._ranks)
        return -(-mine // self._batch_size)


class _Apart(Dataset):
    """The training's pictures, loaded with other chances; the augmenter's draws do not depend on who loads."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitems__(self, indices: Batch) -> list:
        own = getattr(self._dataset, '__getitems__', None)
        with torch.random.fork_rng([]):
            return own(indices) if own is not None else [self._dataset[index] for index in indices]


def _loader(runner: Runner) -> DataLoader:
    """The training's data in a loader of our own: the loop may be amid its own loader's pass."""
    theirs = runner.train_dataloader
    seed = torch.tensor((runner.seed or 0) % 2**31 + 1_000_003 * runner.iter)
    if get_dist_info()[1] > 1:  # MMEngine's diff_rank_seed gives each rank another
        seed = seed.to('cuda' if torch.distributed.get_backend() == 'nccl' else 'cpu')
        broadcast(seed)
    seed = int(seed)
    return DataLoader(
        _Apart(theirs.dataset),
        batch_sampler=_Shuffled(len(theirs.dataset), theirs.batch_sampler.batch_size, seed),
        num_workers=theirs.num_workers,
        collate_fn=theirs.collate_fn,
        pin_memory=theirs.pin_memory,
        worker_init_fn=theirs.worker_init_fn,
        persistent_workers=theirs.num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Everything in eval mode within the block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _apart(time: int, augmenter: ImageAugmenter) -> Iterator[None]:
    """Random numbers and draws of the burst's own; afterwards the training goes on with its own."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy, draws = random.getstate(), np.random.get_state(), augmenter.draws
    augmenter.draws = (1 + time) * _FAR
    with torch.random.fork_rng(devices):
        seed = (torch.initial_seed() + 1_000_003 * time) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(torch.initial_seed())  # which the augmenter's draws depend on: it stays what it is
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            augmenter.draws = draws
