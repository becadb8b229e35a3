"""DAM: distinctive-area detection."""

from mmsokd.areas.decode import area_count, area_weight, decode, keep_peaks
from mmsokd.areas.detector import AreaResult, Detection, DistinctiveAreaDetector
from mmsokd.areas.head import AreaHead, AreaMaps

__all__ = [
    'AreaHead',
    'AreaMaps',
    'AreaResult',
    'Detection',
    'DistinctiveAreaDetector',
    'area_count',
    'area_weight',
    'decode',
    'keep_peaks',
]
