"""Losses: tensors in, a scalar out; one paper a file, a function and a thin module."""

from mmsokd.losses.at import ATLoss, at_loss
from mmsokd.losses.base import TermLoss
from mmsokd.losses.fitnet import FitNetLoss, fitnet_loss
from mmsokd.losses.pkd import PKDLoss, pkd_loss

__all__ = ['ATLoss', 'FitNetLoss', 'PKDLoss', 'TermLoss', 'at_loss', 'fitnet_loss', 'pkd_loss']
