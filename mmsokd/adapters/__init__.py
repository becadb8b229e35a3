"""Learnable maps between a tap and a loss; training only."""

from mmsokd.adapters.conv import ConvAdapter, SoKDAdapter

__all__ = ['ConvAdapter', 'SoKDAdapter']
