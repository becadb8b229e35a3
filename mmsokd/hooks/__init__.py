"""When things happen during a training."""

from mmsokd.hooks.dam import DAMHook
from mmsokd.hooks.guard import GuardHook
from mmsokd.hooks.meta_refine import MetaRefineHook
from mmsokd.hooks.policy_search import PolicySearchHook
from mmsokd.hooks.seed import SeedHook
from mmsokd.hooks.student_checkpoint import StudentCheckpointHook
from mmsokd.hooks.teacher_cache import TeacherCacheHook
from mmsokd.hooks.tst import TSTHook

__all__ = [
    'DAMHook',
    'GuardHook',
    'MetaRefineHook',
    'PolicySearchHook',
    'SeedHook',
    'StudentCheckpointHook',
    'TSTHook',
    'TeacherCacheHook',
]
