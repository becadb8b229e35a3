"""Writes student-only weights that the plain student config loads strictly."""

from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmsokd.export import export_student, save_atomically
from mmsokd.registry import HOOKS


@HOOKS.register_module()
class StudentCheckpointHook(Hook):
    """Beside every best checkpoint, and the last one, a file ``student_<its name>`` with the student alone.

    A best checkpoint that MMEngine removes takes its student file with it.

    Args:
        prefix: what comes before the checkpoint's name.
    """

    priority = 'LOWEST'  # after CheckpointHook, whose files these are

    def __init__(self, prefix: str = 'student_') -> None:
        self.prefix = prefix
        self._written: dict[str, Path] = {}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Follow the best checkpoints."""
        if not is_main_process():
            return
        for key, source in _best_checkpoints(runner).items():
            self._follow(key, source)

    def after_train(self, runner: Runner) -> None:
        """Follow the last checkpoint."""
        source = runner.message_hub.runtime_info.get('last_ckpt')
        if is_main_process() and source:
            self._follow('last', source)

    def _follow(self, key: str, source: str) -> None:
        target = Path(source).with_name(self.prefix + Path(source).name)
        old = self._written.get(key)
        if not Path(source).is_file() or (old == target and target.is_file()):
            return
        checkpoint = torch.load(source, map_location='cpu', weights_only=False)
        save_atomically(export_student(checkpoint), target)
        self._written[key] = target
        if old is not None and old not in self._written.values():
            old.unlink(missing_ok=True)


def _best_checkpoints(runner: Runner) -> dict[str, str]:
    """Metric -> file of the best checkpoint so far, over all CheckpointHooks."""
    best = {}
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        if getattr(hook, 'best_ckpt_path', None):
            best['best'] = hook.best_ckpt_path
        best.update({k: v for k, v in getattr(hook, 'best_ckpt_path_dict', {}).items() if v})
    return best
