"""Checkpoints that survive a kill, or a full disk, at any moment."""

import inspect
import logging
import os
import re
from collections import deque
from pathlib import Path
from typing import Any

import mmengine
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsokd.checkpoint import load_checkpoint, write_atomically
from mmsokd.checks import check_keys
from mmsokd.registry import HOOKS

_BACKEND = 'mmsokd.atomic'


class AtomicBackend(LocalBackend):
    """MMEngine's files on a local disk, each written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` beside ``filepath`` and rename."""
        mmengine.mkdir_or_exist(Path(filepath).parent)
        with write_atomically(filepath) as file:
            file.write(obj)


register_backend(_BACKEND, AtomicBackend, force=True)


class _Keeping:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook in another order: write, name it in ``last_checkpoint``, then remove what is outdated.

    A file gets its name when it is complete, so that at every moment ``last_checkpoint`` names a whole checkpoint, and
    no older one than of the interval before. It takes the room of one checkpoint more than ``max_keep_ckpts``.

    The arguments are CheckpointHook's. Files in other places than a local disk are written as MMEngine does.

    The first one is read back, and what safe reading would refuse on resuming is told then.

    Raises:
        ValueError: when the training begins: an argument that neither the hook nor ``Runner.save_checkpoint`` has.
        OSError: a file could not be written, for one since the disk is full; what was there before is left.
    """

    _read_back = False

    def before_train(self, runner: Runner) -> None:
        """Choose how files are written; remove what a killed run has left unfinished."""
        own = [key for key in inspect.signature(CheckpointHook).parameters if key != 'kwargs']
        check_keys('CheckpointHook', self.args, [*own, *inspect.signature(runner.save_checkpoint).parameters])
        super().before_train(runner)
        if self.backend_args is None and self.file_client_args is None and type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=_BACKEND)
            if is_main_process():
                numbered = r'[\d\s,]+'.join(map(re.escape, re.split(r'\{.*?\}', self.filename_tmpl)))
                own = re.compile(rf'(.*\.pth|.*{numbered}|last_checkpoint)\.part')
                for part in Path(self.out_dir).glob('*.part'):
                    if own.fullmatch(part.name):
                        part.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        kept = [step]
        if self.max_keep_ckpts > 0:
            kept = [other for other in self.keep_ckpt_ids if type(other) is int and other != step] + kept
            # With the outdated ones: a run that was killed before it removed them does so when it is resumed.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            with write_atomically(Path(runner.work_dir) / 'last_checkpoint') as file:
                file.write(self.last_ckpt.encode())
            self._read_back_once(runner)
        if self.max_keep_ckpts > 0:
            outdated, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            for other in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(other)))

    def _read_back_once(self, runner: Runner) -> None:
        if self._read_back or self.backend_args != dict(backend=_BACKEND) or not Path(self.last_ckpt).is_file():
            return
        self._read_back = True
        try:
            load_checkpoint(self.last_ckpt)
        except ValueError as error:
            runner.logger.warning(f'A run that resumes needs to trust this checkpoint: {error}')

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        backend, self.file_backend = self.file_backend, _Keeping(self.file_backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        current = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        for path in outdated:
            if path not in current and self._is_own_best(path):  # one may follow another of its own name
                self._remove(path)

    def _is_own_best(self, path: str) -> bool:
        """Whether it is one of this run's; a resumed run knows its best ones from a file, which may name anything."""
        folder, name = os.path.split(path)
        local = isinstance(self.file_backend, LocalBackend)
        here = os.path.realpath(folder) == os.path.realpath(self.out_dir) if local else folder == self.out_dir
        if not here or not name.startswith('best_'):
            print_log(f'{path} is not removed: it is no best checkpoint in {self.out_dir}', 'current', logging.WARNING)
        return here and name.startswith('best_')

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as DeepSpeed saves
            self.file_backend.rmtree(path)


def make_saves_atomic(runner: Runner) -> None:
    """Let the runner's CheckpointHook be an :class:`AtomicCheckpointHook`; a library's own subclass is left alone."""
    for hook in runner.hooks:
        if type(hook) is CheckpointHook:
            hook.__class__ = AtomicCheckpointHook
