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
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Subset

from mmsokd.checks import check_choice, check_integer
from mmsokd.distillers.cache import DTYPES, fingerprints
from mmsokd.hooks.common import distiller_of
from mmsokd.registry import HOOKS

_LOOKED_AT, _MOST_TIMES = 4, 64  # pictures, and loadings of each
_RANDOM = re.compile(
    'rand|jitter|distort|mosaic|mixup|cutmix|cutout|resizemix|copypaste|autoaugment|albu|lighting|erasing', re.I
)


@HOOKS.register_module()
class TeacherCacheHook(Hook):
    """Keeps what frozen teachers give for each training picture on disk: they run in the first epoch alone.

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

    Raises:
        ValueError: an option is not valid, the views are not static, the folder has something else, the disk no room,
            or nothing of the model can be cached: with ``refine.at``, TST, IAKD and an online teacher.
    """

    priority = 'NORMAL'

    def __init__(self, cache_dir: str | None = None, dtype: str = 'float16', views: int = 1) -> None:
        if cache_dir is not None and (not isinstance(cache_dir, str) or not cache_dir):
            raise ValueError(f'TeacherCacheHook.cache_dir: expected a folder, found {cache_dir!r}')
        check_choice('TeacherCacheHook.dtype', dtype, DTYPES)
        check_integer('TeacherCacheHook.views', views, 1)
        self.cache_dir = cache_dir
        self.dtype = dtype
        self.views = views

    def before_train(self, runner: Runner) -> None:
        """Look whether the views are static, and open the databases."""
        model, loader = distiller_of(runner), runner.train_dataloader
        folder = Path(self.cache_dir or Path(runner.work_dir) / 'teacher_cache')
        if len(set(all_gather_object(platform.node()))) > 1:  # which may have the work dir from one server
            folder /= platform.node()
        capacity = pictures_in(loader.dataset) * self.views
        try:
            model.open_caches(folder, self.dtype, capacity, self._hint(runner))
            self._check_views(runner)
        except BaseException:
            model.close_caches()
            raise
        self._seen = {key: (0, 0) for key in model.caches}

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

    def _check_views(self, runner: Runner) -> None:
        """Load and preprocess some pictures several times.

        Raises:
            ValueError: there are more views than ``views``.
        """
        loader, preprocessor = runner.train_dataloader, distiller_of(runner).data_preprocessor
        count = len(loader.dataset)
        chosen = sorted({i * count // _LOOKED_AT for i in range(_LOOKED_AT)})
        times = min(4 + 4 * self.views, _MOST_TIMES)
        seen: list[set[bytes]] = [set() for _ in chosen]
        with _undisturbed():
            # As the training loads them: what a data set opens is opened in a worker, where there is one.
            again = DataLoader(
                Subset(loader.dataset, chosen * times),
                batch_size=len(chosen),
                num_workers=min(1, loader.num_workers),
                collate_fn=loader.collate_fn,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
            )
            for batch in again:
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
    while dataset is not None:
        inner = getattr(dataset, 'datasets', None)
        pipeline = getattr(dataset, 'pipeline', None)
        parts += list(getattr(pipeline, 'transforms', pipeline if isinstance(pipeline, Sequence) else []))
        dataset = inner[0] if isinstance(inner, Sequence) and inner else getattr(dataset, 'dataset', None)
    names = dict.fromkeys(name for part in parts for name in _names(part) if _RANDOM.search(name))
    return list(names)


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
