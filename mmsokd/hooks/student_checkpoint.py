"""Writes student-only weights that the plain student config loads strictly."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmsokd.checkpoint import load_checkpoint
from mmsokd.export import export_student, save_atomically
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class StudentCheckpointHook(Hook):
    """Beside every best checkpoint, and the last one, a file ``student_<its name>`` with the student alone.

    A best checkpoint that MMEngine removes takes its student file with it.

    Args:
        prefix: what comes before the checkpoint's name.

    Raises:
        ValueError: ``prefix`` is no text that a file's name can begin with.
    """

    priority = 'LOWEST'  # after CheckpointHook, whose files these are

    def __init__(self, prefix: str = 'student_') -> None:
        if not isinstance(prefix, str) or not prefix or Path(prefix).name != prefix:
            raise ValueError(f"StudentCheckpointHook.prefix: expected the beginning of a file's name, found {prefix!r}")
        self.prefix = prefix

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
        """Write the student of ``source``, and drop those of best checkpoints that are gone.

        Only files of this hook's own naming of MMEngine's ``best_*`` files are ever removed.
        """
        target = source.with_name(self.prefix + source.name)
        if not source.is_file() or (target.is_file() and target.stat().st_mtime >= source.stat().st_mtime):
            return
        checkpoint = load_checkpoint(source, trust=True)  # this very run has written it
        save_atomically(export_student(checkpoint), target)
        for student in target.parent.glob(f'{self.prefix}best_*.pth'):
            if not student.with_name(student.name.removeprefix(self.prefix)).is_file():
                student.unlink()


def _best_checkpoints(runner: Runner) -> list[str]:
    """The files of the best checkpoints so far, over all CheckpointHooks."""
    best = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            best += [getattr(hook, 'best_ckpt_path', None), *getattr(hook, 'best_ckpt_path_dict', {}).values()]
    return [path for path in best if path]
