"""Random numbers that follow from where the training is, not from how it came there."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsokd.augment import Policy
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes a resumed run draw the random numbers of an undisturbed one [ours].

    MMEngine saves no random state; beside this hook there is none to save. A step (dropout, batch augmentations, a
    loss's own draws) is seeded by the run's seed and the iteration; the loading of a batch by the seed, the rank, the
    epoch and the batch's number in it, whichever worker loads it. MMEngine's iteration-based loop begins its workers
    before any hook, so that those of its first pass draw as they like; but when it is resumed it loads all former
    batches again, and its workers with them draw what they drew.

    The seed is the runner's: of the config's ``randomness``, or the one that MMEngine has chosen. The sampler's is
    saved with the checkpoint, and restored where no batch is loaded yet.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Number the loader's batches, and stand before its data set; tell the policies the seed."""
        for module in runner.model.modules():
            if isinstance(module, Policy):
                module.seed = runner.seed  # PyTorch's own changes with each step
        loader, loop = runner.train_dataloader, runner.train_loop
        self._batches = NumberedBatches(loader.batch_sampler, runner.seed)
        if loader.batch_sampler is not None:
            vars(loader)['batch_sampler'] = self._batches  # a loader refuses another by its attribute
        try:
            loader.dataset.__getitems__ = SeededFetch(loader.dataset, runner.seed)  # which loaders ask for a batch
        except AttributeError as error:
            if not isinstance(loader.dataset, list | tuple):  # which draw nothing
                runner.logger.warning(f'what the training set draws is not seeded: {error}')
        iterator = getattr(loop, 'dataloader_iterator', None)
        if getattr(iterator, '_iterator', None) is not None and not loader.num_workers:
            loop.dataloader_iterator = type(iterator)(loader)  # it has loaded nothing yet

    def before_train_epoch(self, runner: Runner) -> None:
        """Count from here."""
        self._batches.begin(runner.epoch, _stepped_over(runner.train_loop))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step, each rank's by itself."""
        seed = _seed_host(runner.seed, runner.iter, get_rank())
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the sampler's seed, which is another in each run where the config gives none."""
        checkpoint['sampler_seed'] = getattr(_sampler(runner.train_dataloader), 'seed', None)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Resume it."""
        seed = checkpoint.get('sampler_seed')
        if not runner._resume or seed is None:
            return
        loader = runner.train_dataloader
        if seed == getattr(_sampler(loader), 'seed', seed):
            return
        _sampler(loader).seed = seed
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if loader.num_workers and getattr(iterator, '_iterator', None) is not None:
            runner.logger.warning(
                'the run goes on with its data in another order: an iteration-based loop has begun its workers before '
                "the checkpoint's seed is known. Give it in the config: "
                f'randomness=dict(seed={checkpoint["meta"].get("seed")})'
            )


class Batch(list):
    """Indices of a batch, with its ``place`` in the training: epoch and number."""


class NumberedBatches:
    """A batch sampler's batches as :class:`Batch`, so that whoever loads one knows which it is.

    Args:
        sampler: gives lists of indices; its attributes are this one's.
        seed: of the run. A sampler of PyTorch's own draws its order's seed as it begins a pass, from a generator that
            is seeded for it; None: it is left alone.
    """

    def __init__(self, sampler: Any, seed: int | None = None) -> None:
        self._inner = sampler._inner if isinstance(sampler, NumberedBatches) else sampler  # a former training's
        self._seed = seed
        self.begin(0)

    def begin(self, epoch: int, first: int = 0) -> None:
        """The next batch is number ``first`` of ``epoch``."""
        self._epoch, self._next, self._passes = epoch, first, 0

    def __iter__(self) -> Iterator[Batch]:
        if self._seed is not None:
            _seed_host(self._seed, self._epoch, self._passes, 0, 0, 1)  # no step's numbers, and no batch's
        self._passes += 1
        for indices in self._inner:
            batch = Batch(indices)
            batch.place = self._epoch, self._next
            self._next += 1
            yield batch

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == '_inner':  # of a copy in the making
            raise AttributeError(name)
        return getattr(self._inner, name)


class SeededFetch:
    """Loads batches of ``dataset``, those with a place after seeding what a pipeline draws from.

    Args:
        dataset: of which batches are loaded.
        seed: of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        own = getattr(dataset, '__getitems__', None)
        self._own = own._own if isinstance(own, SeededFetch) else own  # a former training's
        self._dataset = dataset
        self._key = seed, get_rank()

    def __call__(self, indices: list) -> list:
        """The items, as PyTorch's loader wants them of a data set's ``__getitems__``."""
        if isinstance(indices, Batch):  # and not of another loader of this data set
            _seed_host(*self._key, *indices.place, 0)
        return self._own(indices) if self._own is not None else [self._dataset[index] for index in indices]


def _stepped_over(loop: Any) -> int:
    """How many batches a resumed loop does not load again: onedl-mmengine's, by iterations, moves its sampler on."""
    iterator = getattr(loop, 'dataloader_iterator', None)
    return loop.iter if hasattr(iterator, 'skip_iter') and iterator._resolve_sampler() is not None else 0


def _sampler(loader: DataLoader) -> Any:
    """That of its batch sampler, as SamplerSeedHook finds it."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)


def _seed_host(*key: int) -> int:
    """Seed the generators of Python, NumPy and PyTorch on the host by numbers >= 0; the seed that PyTorch got."""
    words = np.random.SeedSequence(key).generate_state(4)
    seed = int.from_bytes(words[:2].tobytes(), 'little')
    random.seed(seed)
    np.random.seed(words)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would note a traceback where CUDA is not used
    return seed
