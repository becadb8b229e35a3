"""Models that wrap a student and its teachers."""

from mmsokd.distillers.base import Distiller
from mmsokd.distillers.iakd import IAKDDistiller
from mmsokd.distillers.online import OnlineDistiller
from mmsokd.distillers.sftn import SFTNTeacherTrainer
from mmsokd.distillers.sokd import SoKDDistiller
from mmsokd.distillers.tst import TSTDistiller

__all__ = ['Distiller', 'IAKDDistiller', 'OnlineDistiller', 'SFTNTeacherTrainer', 'SoKDDistiller', 'TSTDistiller']
