"""Trainings to be killed: forked off a process that has imported everything, so that thirty begin as quickly as one."""

import multiprocessing
import os
import random
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint

from mmsokd.checkpoint import load_checkpoint

context = multiprocessing.get_context('forkserver')


class Report(Hook):
    """Tells each iteration that is done, before it is saved."""

    priority = 'HIGHEST'

    def __init__(self, pipe) -> None:
        self.pipe = pipe

    def after_train_iter(self, runner, **_):
        self.pipe.send(runner.iter + 1)


def _train(make: Callable[..., Runner], work_dir: Path, log: Path, slow: bool, pipe) -> None:
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    fsync = os.fsync

    def fsync_slowly(file: int) -> None:
        time.sleep(0.03 if stat.S_ISDIR(os.fstat(file).st_mode) else 0.12)
        fsync(file)

    if slow:
        os.fsync = fsync_slowly
    run = make(work_dir, resume=True)
    run.register_hook(Report(pipe))
    run.train()


class Lives:
    """The lives of one training, each in a process of its own that resumes what the last one left.

    Args:
        make: of a module, gives a Runner for a work dir and ``resume``.
        work_dir: the Runner's.
        interval: iterations between two checkpoints.
    """

    def __init__(self, make: Callable[..., Runner], work_dir: Path, interval: int) -> None:
        self.make, self.work_dir, self.interval = make, work_dir, interval
        self.log = work_dir.with_suffix('.log')
        self.rng = random.Random(0)
        self.pause = 0.1  # the longest between two iterations: where a checkpoint is written
        self.done = self.saved = 0  # iterations

    def finish(self) -> None:
        """One to the training's end."""
        process, pipe = self._begin(slow=False)
        self._listen(pipe)
        process.join()
        assert process.exitcode == 0, self.log.read_text()[-3000:]

    def kill(self, aimed: bool = False) -> bool:
        """One that SIGKILL ends, within two intervals or so; whether a checkpoint was being written.

        Args:
            aimed: wait until one is.

        Raises:
            AssertionError: it could not be resumed, or what it leaves is torn, or older than one interval.
        """
        process, pipe = self._begin(slow=True)
        self._listen(pipe, self.rng.randint(1, 2 * self.interval))
        while aimed and process.is_alive() and not self._is_writing():
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0, 0.05 if aimed else self.pause))
        process.kill()
        process.join()
        self._listen(pipe)
        assert process.exitcode == -signal.SIGKILL, self.log.read_text()[-3000:]
        self._look()
        return self._is_writing()

    def _is_writing(self) -> bool:
        return any(self.work_dir.glob('*.part'))

    def _begin(self, slow: bool) -> tuple:
        pipe, end = context.Pipe(duplex=False)
        process = context.Process(target=_train, args=(self.make, self.work_dir, self.log, slow, end))
        process.start()
        end.close()  # so that the pipe ends with the process
        return process, pipe

    def _listen(self, pipe, count: int | None = None) -> None:
        """To ``count`` iterations, or to all."""
        last = None
        with suppress(EOFError):
            while count is None or count > 0:
                self.done = pipe.recv()
                now = time.monotonic()
                self.pause = max(self.pause, now - last if last else 0)
                last, count = now, None if count is None else count - 1

    def _look(self) -> None:
        """At all checkpoints: each is whole, at most one is there beside the one that is kept."""
        found = {str(path): load_checkpoint(path)['meta']['iter'] for path in self.work_dir.glob('*.pth')}
        assert len(found) <= 2
        saved = found.get(find_latest_checkpoint(str(self.work_dir)), 0)
        assert saved >= max(self.saved, self.done - self.interval)
        self.saved = saved
