"""Losses: tensors in, a scalar out; one paper a file, a function and a thin module."""

from mmsokd.losses.at import ATLoss, at_loss
from mmsokd.losses.base import TermLoss
from mmsokd.losses.cwd import CWDLoss, cwd_loss
from mmsokd.losses.fgd import FGDLoss, fgd_focal_loss
from mmsokd.losses.fitnet import FitNetLoss, fitnet_loss
from mmsokd.losses.ld import LDLoss, ld_loss
from mmsokd.losses.mgd import MGDLoss, mgd_loss
from mmsokd.losses.pkd import PKDLoss, pkd_loss
from mmsokd.losses.reviewkd import ReviewKDLoss, hcl_loss
from mmsokd.losses.vid import VIDLoss, vid_loss

__all__ = [
    'ATLoss',
    'CWDLoss',
    'FGDLoss',
    'FitNetLoss',
    'LDLoss',
    'MGDLoss',
    'PKDLoss',
    'ReviewKDLoss',
    'TermLoss',
    'VIDLoss',
    'at_loss',
    'cwd_loss',
    'fgd_focal_loss',
    'fitnet_loss',
    'hcl_loss',
    'ld_loss',
    'mgd_loss',
    'pkd_loss',
    'vid_loss',
]
