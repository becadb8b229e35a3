"""Random numbers that follow from where the training is, not from how it came there."""

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader

from mmsokd.augment.policy import Seeded
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
        """Tell the seed to what draws by it."""
        for module in runner.model.modules():
            if isinstance(module, Seeded):
                module.seed = runner.seed  # PyTorch's own changes with each step
        if _batches(runner.train_dataloader) is None:
            runner.logger.warning('what the training set draws is not seeded: its loader makes no batches')

    def before_train_epoch(self, runner: Runner) -> None:
        """Number the loader's batches from here."""
        # other hooks, and streams that draw before their sampler does
        _seed_host(runner.seed, get_rank(), runner.epoch, 0, 0, 0, 2)
        loader, loop = runner.train_dataloader, runner.train_loop
        if _batches(loader) is None:
            return
        if not isinstance(loader.batch_sampler, NumberedBatches):
            _exchange(loader, NumberedBatches(loader.batch_sampler))
        loader.batch_sampler.begin(runner.seed, runner.epoch, _stepped_over(loop))
        iterator = getattr(loop, 'dataloader_iterator', None)
        is_mmengines = type(iterator).__module__.startswith('mmengine.')
        if is_mmengines and iterator._iterator is not None and not loader.num_workers:
            loop.dataloader_iterator = type(iterator)(loader)  # it has loaded nothing yet

    def after_train(self, runner: Runner) -> None:
        """Give the loader its own batches back, for another training with it."""
        batches = _batches(runner.train_dataloader)
        if isinstance(batches, NumberedBatches):
            _exchange(runner.train_dataloader, batches.give_back())

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
        if not runner._resume:
            return
        loader, seed = runner.train_dataloader, checkpoint.get('sampler_seed')
        is_other = seed is not None and seed != getattr(_sampler(loader), 'seed', seed)
        if is_other:
            _sampler(loader).seed = seed
        # a sampler without a seed, as PyTorch's, draws by the run's
        is_other = is_other or checkpoint['meta'].get('seed') != runner.seed
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        has_begun = getattr(iterator, '_iterator', None) is not None and loader.num_workers > 0
        if is_other and has_begun:
            runner.logger.warning(
                'the run goes on with its data in another order: an iteration-based loop has begun its workers before '
                "the checkpoint's seed is known. Give it in the config: "
                f'randomness=dict(seed={checkpoint["meta"].get("seed")})'
            )


class Batch(list):
    """Indices of a batch; whoever loads it goes over them, and what its pipeline draws from is seeded as that begins.

    So it needs neither the data set's help nor the loader's, and a copy of the data set, or another loader of it, draws
    as it would without. A data set's own ``__getitems__`` that does not go over its indices is not seeded.

    Args:
        indices: of the batch.
        key: numbers >= 0, the seed; None after it was used.
    """

    def __init__(self, indices: Iterable, key: tuple[int, ...] | None) -> None:
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator:
        if self.key is not None:  # who goes over them again loads other parts of the same pictures
            _seed_host(*self.key)
            self.key = None
        return super().__iter__()

    def __reduce__(self) -> tuple:  # on its way to a worker, which is no loading
        return Batch, (list(super().__iter__()), self.key)


class NumberedBatches(BatchSampler):
    """A batch sampler's batches as :class:`Batch`, so that each draws by its place in the training: epoch and number.

    What the sampler itself draws is seeded too, by the seed, the epoch, the pass and the batch: PyTorch's own draw
    their order as a pass begins, others (mmdet's ``GroupMultiSourceSampler``) with each batch. A generator of its own
    counts by the seed that it came with, which may be the rank's.

    Args:
        inner: gives lists of indices; its attributes are this one's, to read and to set.
    """

    _own = ('_inner', '_generator', '_given', '_seed', '_rank', '_epoch', '_next', '_passes')

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        generator = getattr(getattr(inner, 'sampler', None), 'generator', None)
        self._generator = generator if isinstance(generator, torch.Generator) else None
        self._given = self._generator.initial_seed() % 2**64 if self._generator is not None else 0
        self.begin(0, 0)

    def give_back(self) -> Any:
        """The sampler, as it came."""
        if self._generator is not None:
            self._generator.manual_seed(self._given)
        return self._inner

    def begin(self, seed: int, epoch: int, first: int = 0) -> None:
        """The next batch is number ``first`` of ``epoch``, in a run of this seed."""
        self._seed, self._rank, self._epoch, self._next, self._passes = seed, get_rank(), epoch, first, 0

    def __iter__(self) -> Iterator[Batch]:
        self._seed_pass()  # the loader draws its workers' seed now, and may ask for a second iterator
        return self._numbered()

    def _seed_pass(self) -> tuple[int, int, int]:
        order = self._seed, self._epoch, self._passes
        _seed_host(*order, 0, 0, 1)  # no step's numbers, and no batch's
        if self._generator is not None:
            self._generator.manual_seed(_seed_of(*order, self._given, 0, 2)[0])
        return order

    def _numbered(self) -> Iterator[Batch]:
        order = self._seed_pass()
        first = self._next if self._passes == 0 else 0
        self._passes += 1
        batches = iter(self._inner)
        for number in itertools.count(first):
            _seed_host(*order, number, 0, 1)
            indices = next(batches, None)
            if indices is None:
                return
            if isinstance(indices, np.ndarray | torch.Tensor) and indices.ndim == 1:
                indices = indices.tolist()
            key = self._seed, self._rank, self._epoch, self._next, 0
            self._next += 1
            # slices and the like are a data set's own matter
            yield Batch(indices, key) if type(indices) in (list, tuple, range) else indices

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == '_inner':  # of a copy in the making
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            super().__setattr__(name, value)
        else:
            setattr(self._inner, name, value)


def _stepped_over(loop: Any) -> int:
    """How many batches a resumed loop does not load again: onedl-mmengine's, by iterations, moves its sampler on.

    Or, with ``fast_forward_on_resume``, begins a new order.
    """
    if getattr(loop, 'fast_forward_on_resume', False):
        return loop.iter
    iterator = getattr(loop, 'dataloader_iterator', None)
    return loop.iter if hasattr(iterator, 'skip_iter') and iterator._resolve_sampler() is not None else 0


def _sampler(loader: DataLoader) -> Any:
    """That of its batch sampler, as SamplerSeedHook finds it."""
    return getattr(_batches(loader), 'sampler', loader.sampler)


def _batches(loader: Any) -> Any:
    """The batch sampler, which a loader of one's own need not have."""
    return getattr(loader, 'batch_sampler', None)


def _exchange(loader: DataLoader, batches: BatchSampler) -> None:
    """Give it another batch sampler."""
    vars(loader)['batch_sampler'] = batches  # its attribute refuses another
    living = getattr(loader, '_iterator', None)  # of persistent workers: it has its sampler from when it was made
    if living is not None:
        living._index_sampler = batches


def _seed_of(*key: int) -> tuple[int, np.ndarray]:
    """Of numbers >= 0, one for PyTorch and one for NumPy."""
    words = np.random.SeedSequence(key).generate_state(4)
    return int.from_bytes(words[:2].tobytes(), 'little'), words


def _seed_host(*key: int) -> int:
    """Seed the generators of Python, NumPy and PyTorch on the host by numbers >= 0; the seed that PyTorch got."""
    seed, words = _seed_of(*key)
    random.seed(seed)
    np.random.seed(words)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would note a traceback where CUDA is not used
    return seed
