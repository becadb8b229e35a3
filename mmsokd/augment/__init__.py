"""DAFA: learnable augmentation of the teacher's feature; TST's of the pictures; and Meta-KD's refiner."""

from mmsokd.augment.feature_ops import FEATURE_OPS, FeatureOp
from mmsokd.augment.image_augmenter import ImageAugmenter, ImageDraw
from mmsokd.augment.image_ops import IMAGE_OPS, ImageOp
from mmsokd.augment.knowledge import KnowledgeRefiner, refine_knowledge
from mmsokd.augment.neck import FeatureAugmentationNeck
from mmsokd.augment.policy import SUB_POLICIES, Draw, Policy
from mmsokd.augment.refining import FeatureRefiner
from mmsokd.augment.unrolled import unrolled_gradient

__all__ = [
    'FEATURE_OPS',
    'IMAGE_OPS',
    'SUB_POLICIES',
    'Draw',
    'FeatureAugmentationNeck',
    'FeatureOp',
    'FeatureRefiner',
    'ImageAugmenter',
    'ImageDraw',
    'ImageOp',
    'KnowledgeRefiner',
    'Policy',
    'refine_knowledge',
    'unrolled_gradient',
]
