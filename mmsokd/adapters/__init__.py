"""Learnable maps between a tap and a loss; training only."""

from mmsokd.adapters.conv import ConvAdapter, ResizeAdapter, SoKDAdapter
from mmsokd.adapters.linear import LinearAdapter
from mmsokd.adapters.matching import ChannelMatching
from mmsokd.adapters.reviewkd import ReviewKDAdapter
from mmsokd.adapters.simplifier import LearningSimplifier

__all__ = [
    'ChannelMatching',
    'ConvAdapter',
    'LearningSimplifier',
    'LinearAdapter',
    'ResizeAdapter',
    'ReviewKDAdapter',
    'SoKDAdapter',
]
