"""Losses: tensors in, a scalar out; one paper a file, a function and a thin module."""

from mmsokd.losses.at import ATLoss, at_loss
from mmsokd.losses.base import TermLoss
from mmsokd.losses.crd import CRDLoss, nce_loss
from mmsokd.losses.dist import DISTLoss, dist_loss
from mmsokd.losses.dkd import DKDLoss, dkd_loss
from mmsokd.losses.fitnet import FitNetLoss, fitnet_loss
from mmsokd.losses.kd import KDLoss, kd_loss
from mmsokd.losses.pkd import PKDLoss, pkd_loss
from mmsokd.losses.rkd import RKDLoss, rkd_loss
from mmsokd.losses.sp import SPLoss, sp_loss

__all__ = [
    'ATLoss',
    'CRDLoss',
    'DISTLoss',
    'DKDLoss',
    'FitNetLoss',
    'KDLoss',
    'PKDLoss',
    'RKDLoss',
    'SPLoss',
    'TermLoss',
    'at_loss',
    'dist_loss',
    'dkd_loss',
    'fitnet_loss',
    'kd_loss',
    'nce_loss',
    'pkd_loss',
    'rkd_loss',
    'sp_loss',
]
