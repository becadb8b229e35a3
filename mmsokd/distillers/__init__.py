"""Models that wrap a student and its teachers."""

from mmsokd.distillers.base import Distiller
from mmsokd.distillers.sftn import SFTNTeacherTrainer
from mmsokd.distillers.sokd import SoKDDistiller

__all__ = ['Distiller', 'SFTNTeacherTrainer', 'SoKDDistiller']
