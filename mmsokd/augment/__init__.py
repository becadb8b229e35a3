"""DAFA: learnable augmentation of the teacher's feature. Draw, then apply."""

from mmsokd.augment.feature_ops import FEATURE_OPS, FeatureOp
from mmsokd.augment.neck import FeatureAugmentationNeck
from mmsokd.augment.policy import SUB_POLICIES, Draw, Policy
from mmsokd.augment.unrolled import unrolled_gradient

__all__ = [
    'FEATURE_OPS',
    'SUB_POLICIES',
    'Draw',
    'FeatureAugmentationNeck',
    'FeatureOp',
    'Policy',
    'unrolled_gradient',
]
