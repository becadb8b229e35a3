"""Learnable maps between a tap and a loss; training only."""

from mmsokd.adapters.conv import ConvAdapter, ResizeAdapter, SoKDAdapter

__all__ = ['ConvAdapter', 'ResizeAdapter', 'SoKDAdapter']
