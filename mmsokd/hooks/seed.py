"""Random numbers that follow from where the training is, not from how it came there."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, get_worker_info

from mmsokd.augment import Policy
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes a resumed run draw the random numbers of an undisturbed one [ours].

    MMEngine saves no random state; beside this hook there is none to save. A step (dropout, batch augmentations, a
    loss's own draws) is seeded by the run's seed and the iteration; the loading of a batch by the seed, the rank, the
    epoch and the batch's number in it, whichever worker loads it. MMEngine's iteration-based loop begins its workers
    before any hook; but when it is resumed it loads all former batches again, and its workers with them draw what they
    drew.

    The seed is the runner's: of the config's ``randomness``, or the one that MMEngine has chosen. The sampler's is
    saved with the checkpoint, and restored where no batch is loaded yet.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Stand between the loader and its data set; tell the policies the seed."""
        for module in runner.model.modules():
            if isinstance(module, Policy):
                module.seed = runner.seed  # PyTorch's own changes with each step
        dataset = runner.train_dataloader.dataset
        self._fetch = SeededFetch(dataset, runner.seed, runner.train_dataloader.num_workers)
        self._fetch.first = _stepped_over(runner.train_loop)
        if hasattr(dataset, '__dict__'):  # a mere list draws nothing
            dataset.__getitems__ = self._fetch  # which PyTorch's loader and its workers ask for a batch

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the workers, before they begin it; a sampler of PyTorch's own draws its seed as it begins."""
        self._fetch.begin(runner.epoch)
        _seed_host(runner.seed, runner.epoch, 0, 0, 0, 1)  # no step's numbers, and no batch's

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


class SeededFetch:
    """Loads batches of ``dataset``, each after seeding what a pipeline draws from.

    Batches are counted where all of a loader's workers see it, since those that begin anew within an epoch go on
    counting.

    Args:
        dataset: of which batches are loaded.
        seed: of the run.
        workers: of the loader.
    """

    first = 0  # the number of the first batch that is loaded

    def __init__(self, dataset: Any, seed: int, workers: int = 0) -> None:
        own = getattr(dataset, '__getitems__', None)
        self._own = own._own if isinstance(own, SeededFetch) else own  # a former training's
        self._dataset = dataset
        self._key = seed, get_rank()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._loaded = torch.zeros(max(workers, 1), dtype=torch.int64).share_memory_()  # by each worker

    def begin(self, epoch: int) -> None:
        """Count the batches of ``epoch`` from here."""
        self._epoch.fill_(epoch)
        self._loaded.zero_()

    def __call__(self, indices: list) -> list:
        """The items, as PyTorch's loader wants them of a data set's ``__getitems__``."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        number = self.first + int(self._loaded[worker]) * workers + worker  # they take turns
        self._loaded[worker] += 1
        _seed_host(*self._key, int(self._epoch), number, 0)
        return self._own(indices) if self._own is not None else [self._dataset[index] for index in indices]


def _stepped_over(loop: Any) -> int:
    """How many batches a resumed loop does not load again: onedl-mmengine's, by iterations, moves its sampler on."""
    iterator = getattr(loop, 'dataloader_iterator', None)
    if not hasattr(iterator, 'skip_iter'):
        return 0
    loads_again = loop.dataloader.num_workers and iterator._resolve_sampler() is None
    return 0 if loads_again else loop.iter


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
