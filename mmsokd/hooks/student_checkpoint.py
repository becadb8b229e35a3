"""Writes the weights of the trained model alone, which its plain config loads strictly."""

import logging
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsokd.checkpoint import load_checkpoint
from mmsokd.export import export_part, save_atomically
from mmsokd.hooks.common import model_of
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class StudentCheckpointHook(Hook):
    """Beside every best checkpoint, and the last one, a file ``student_<its name>`` with the student alone.

    A best checkpoint that MMEngine removes takes its student file with it. Where SFTN trains a teacher, that is what is
    written, as ``teacher_<its name>``.

    Args:
        prefix: what comes before the checkpoint's name; by default that of the trained model.

    Raises:
        ValueError: ``prefix`` is no text that a file's name can begin with.
    """

    priority = 'LOWEST'  # after CheckpointHook, whose files these are

    def __init__(self, prefix: str | None = None) -> None:
        if prefix is not None and (not isinstance(prefix, str) or not prefix or Path(prefix).name != prefix):
            raise ValueError(f"StudentCheckpointHook.prefix: expected the beginning of a file's name, found {prefix!r}")
        self.prefix = prefix

    def before_train(self, runner: Runner) -> None:
        """See what is trained."""
        self.part = model_of(runner).trains
        if self.prefix is None:
            self.prefix = f'{self.part}_'

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Follow the best checkpoints."""
        if is_main_process():
            for source in _best_checkpoints(runner):
                self._follow(Path(source))

    def after_train(self, runner: Runner) -> None:
        """Follow the last checkpoint."""
        source = runner.message_hub.runtime_info.get('last_ckpt')
        if is_main_process() and source:
            self._follow(Path(source))

    def _follow(self, source: Path) -> None:
        """Write the trained model of ``source``, and drop those of best checkpoints that are gone.

        Only files of this hook's own naming of MMEngine's ``best_*`` files are ever removed.
        """
        target = source.with_name(self.prefix + source.name)
        if not source.is_file() or (target.is_file() and target.stat().st_mtime >= source.stat().st_mtime):
            return
        try:  # with care: a run that was resumed knows its files by what it has read
            checkpoint = load_checkpoint(source)
        except ValueError as error:
            print_log(f'{target.name} is not written: {error}', 'current', logging.WARNING)
            return
        save_atomically(export_part(checkpoint, self.part), target)
        for written in target.parent.glob(f'{self.prefix}best_*.pth'):
            if not written.with_name(written.name.removeprefix(self.prefix)).is_file():
                written.unlink()


def _best_checkpoints(runner: Runner) -> list[str]:
    """The files of the best checkpoints so far, over all CheckpointHooks."""
    best = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            best += [getattr(hook, 'best_ckpt_path', None), *getattr(hook, 'best_ckpt_path_dict', {}).values()]
    return [path for path in best if path]
