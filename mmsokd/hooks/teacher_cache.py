"""The teachers' outputs for the training pictures, on disk."""

import platform
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Subset

from mmsokd.checks import check_bool, check_choice, check_integer
from mmsokd.distillers.cache import DTYPES, fingerprints
from mmsokd.hooks.common import distiller_of
from mmsokd.registry import HOOKS

_LOOKED_AT, _MOST_TIMES = 4, 64  # pictures, and loadings of each
_RANDOM = re.compile(
    'rand|jitter|distort|mosaic|mixup|cutmix|cutout|resizemix|copypaste|autoaugment|albu|lighting|erasing', re.I
)


@HOOKS.register_module()
class TeacherCacheHook(Hook):
    """Keeps what frozen teachers give for each training picture on disk: they run in the first epoch alone, or before.

    For pipelines that show the same view of a picture every time. An output is found by the pixels that the teacher
    sees, so that another view never gets it; before the training some pictures are loaded several times, and
    views that differ are told. Static views have a price in accuracy: "Knowledge distillation: A good teacher is
    patient and consistent" (Beyer et al., CVPR 2022).

    Each teacher has an LMDB database, which the next training goes on with where its weights, layers, taps, autocast
    and ``dtype`` are the same, and which is refused where they are not. The log has ``teacher.cached``: which part of
    the pictures was read.

    Args:
        cache_dir: on a disk of this machine (LMDB is not made for network file systems), below which each teacher has a
            folder, and where several machines train each machine has one; by default ``teacher_cache`` in the work dir.
        dtype: ``'float16'``, ``'bfloat16'`` or ``'float32'``, stored; the terms get the batch's dtype.
        views: how many different views of a picture there are; 2 where a flip is the only chance in the pipeline. Each
            is stored.
        fill: run the teachers for all pictures before the training, with a bar on a terminal, and not in its first
            epoch. The pictures are loaded once more for that; where all have been, nothing is done. What is wrong is
            told before a student is trained, and several trainings may then read.

    Raises:
        ValueError: an option is not valid, the views are not static, the folder has something else, the disk no room,
            or nothing of the model can be cached: with ``refine.at``, TST, IAKD and an online teacher.
    """

    priority = 'NORMAL'

    def __init__(
        self, cache_dir: str | None = None, dtype: str = 'float16', views: int = 1, fill: bool = False
    ) -> None:
        if cache_dir is not None and (not isinstance(cache_dir, str) or not cache_dir):
            raise ValueError(f'TeacherCacheHook.cache_dir: expected a folder, found {cache_dir!r}')
        check_choice('TeacherCacheHook.dtype', dtype, DTYPES)
        check_integer('TeacherCacheHook.views', views, 1)
        check_bool('TeacherCacheHook.fill', fill)
        self.cache_dir = cache_dir
        self.dtype = dtype
        self.views = views
        self.fill = fill

    def before_train(self, runner: Runner) -> None:
        """Open the databases, look whether the views are static, and fill."""
        model, loader = distiller_of(runner), runner.train_dataloader
        folder = Path(self.cache_dir or Path(runner.work_dir) / 'teacher_cache')
        nodes = all_gather_object(platform.node())
        if len(set(nodes)) > 1:  # which may have the work dir from one server
            folder /= platform.node()
        capacity = pictures_in(loader.dataset) * self.views
        try:
            with runner.optim_wrapper.optim_context(model):  # a teacher runs under the training's autocast
                model.open_caches(folder, self.dtype, capacity, self._hint(runner))
                seen = self._check_views(runner)
                if self.fill:
                    self._fill(runner, seen, [rank for rank, node in enumerate(nodes) if node == platform.node()])
        except BaseException:
            model.close_caches()
            raise
        self._seen = {key: (cache.read, cache.asked) for key, cache in model.caches.items()}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Log which part of the pictures was read."""
        for key, cache in distiller_of(runner).caches.items():
            read, asked = self._seen[key]
            self._seen[key] = cache.read, cache.asked
            if cache.asked > asked:
                share = (cache.read - read) / (cache.asked - asked)
                runner.message_hub.update_scalar(f'train/{key}.cached', share)

    def after_train(self, runner: Runner) -> None:
        """Let the databases go."""
        distiller_of(runner).close_caches()

    def _hint(self, runner: Runner) -> str:
        names = random_parts(runner.train_dataloader.dataset, distiller_of(runner).data_preprocessor)
        return (
            f'these may be random: {names}; leave them out, or raise views where they give few views, or leave '
            'TeacherCacheHook out'
        )

    def _check_views(self, runner: Runner) -> list[set[bytes]]:
        """Load and preprocess some pictures several times.

        Returns: the keys of each one's views.

        Raises:
            ValueError: there are more views than ``views``.
        """
        loader, preprocessor = runner.train_dataloader, distiller_of(runner).data_preprocessor
        count = len(loader.dataset)
        chosen = sorted({i * count // _LOOKED_AT for i in range(_LOOKED_AT)})
        times = min(4 + 4 * self.views, _MOST_TIMES)
        seen: list[set[bytes]] = [set() for _ in chosen]
        with _undisturbed():
            for batch in _loaded(loader, chosen * times, len(chosen), min(1, loader.num_workers)):
                data = preprocessor(batch, True)
                for views, key in zip(seen, fingerprints(data['inputs'], data['data_samples']), strict=True):
                    views.add(key)
        for i, views in zip(chosen, seen, strict=True):
            if len(views) > self.views:
                raise ValueError(
                    f'TeacherCacheHook: expected pictures that the pipeline shows in {self.views} view'
                    f'{"s" if self.views > 1 else ""}, found {len(views)} of picture {i} in {times} times; '
                    f'{self._hint(runner)}'
                )
        return seen

    def _fill(self, runner: Runner, seen: Sequence[set[bytes]], ranks: Sequence[int]) -> None:
        """Run the teachers for the pictures that are not there.

        Args:
            runner: of the training.
            seen: some pictures' keys; where they are not there, it was filled with another data set's.
            ranks: of this machine, which share the work as they share the folder.
        """
        model, loader = distiller_of(runner), runner.train_dataloader
        caches = model.caches.values()
        known = all(any(key in cache for key in views) for cache in caches for views in seen)
        if not (known and all(cache.is_filled for cache in caches)):
            share = range(len(loader.dataset))[ranks.index(get_rank()) :: len(ranks)]
            print_log(f'TeacherCacheHook: the teachers run for {len(share)} pictures before the training', 'current')
            console = Console(stderr=True)
            is_shown = console.is_terminal and is_main_process()
            with _undisturbed():
                batches = _loaded(loader, share, getattr(loader.batch_sampler, 'batch_size', 1), loader.num_workers)
                for i, batch in enumerate(track(batches, 'caching teachers', console=console, disable=not is_shown)):
                    # Not before the first: it may be full of another data set's.
                    if i and all(cache.is_full or not cache.writes for cache in caches):
                        break  # what is left are repetitions, or finds no room
                    model.fill_caches(**model.data_preprocessor(batch, True))
        # All wait here: one that found the rest done already must not go ahead.
        wrote = all_gather_object(all(cache.writes for cache in caches))
        if get_rank() == ranks[0] and all(wrote[rank] for rank in ranks):
            for cache in caches:
                if not cache.is_filled:
                    cache.mark_filled()


def _loaded(loader: DataLoader, indices: Sequence[int], batch_size: int, workers: int) -> DataLoader:
    """These pictures as the training loads them: what a data set opens is opened in a worker, where there are any."""
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def pictures_in(dataset: Any) -> int:
    """How many different ones: what repeats a data set, or oversamples it, has no more than that."""
    inner = getattr(dataset, 'datasets', None)
    if isinstance(inner, Sequence):
        return sum(map(pictures_in, inner))
    inner = getattr(dataset, 'dataset', None)
    return min(len(dataset), pictures_in(inner)) if inner is not None else len(dataset)


def random_parts(dataset: Any, preprocessor: Any) -> list[str]:
    """What by its name draws at random: in the pipelines, and in the batch augmentations of the preprocessor."""
    augments = getattr(preprocessor, 'batch_augments', None)
    augments = getattr(augments, 'augments', augments)  # mmpretrain's hold a list, mmdet's are one
    parts = list(augments) if isinstance(augments, Sequence | nn.ModuleList) else []
    parts += _transforms(dataset)
    names = dict.fromkeys(name for part in parts for name in _names(part) if _RANDOM.search(name))
    return list(names)


def _transforms(dataset: Any) -> Iterator[Any]:
    """Of a data set, and of those that it wraps."""
    pipeline = getattr(dataset, 'pipeline', None)
    yield from getattr(pipeline, 'transforms', pipeline if isinstance(pipeline, Sequence) else [])
    inner = getattr(dataset, 'datasets', getattr(dataset, 'dataset', None))
    for part in inner if isinstance(inner, Sequence) else [inner]:
        if part is not None:
            yield from _transforms(part)


def _names(part: Any) -> Iterator[str]:
    """Of a transform, and of those that it holds (``RandomApply``, ``TransformBroadcaster``)."""
    yield type(part).__name__
    for inner in getattr(part, 'transforms', None) or []:
        yield from _names(inner)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Afterwards the random numbers go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
