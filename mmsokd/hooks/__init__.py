"""When things happen during a training."""

from mmsokd.hooks.checkpoint import AtomicCheckpointHook, make_saves_atomic
from mmsokd.hooks.dam import DAMHook
from mmsokd.hooks.guard import GuardHook
from mmsokd.hooks.policy_search import PolicySearchHook
from mmsokd.hooks.student_checkpoint import StudentCheckpointHook

__all__ = [
    'AtomicCheckpointHook',
    'DAMHook',
    'GuardHook',
    'PolicySearchHook',
    'StudentCheckpointHook',
    'make_saves_atomic',
]
