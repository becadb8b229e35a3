"""Losses: tensors in, a scalar out; one paper a file, a function and a thin module."""

from mmsokd.losses.ackd import ACKDLoss, attention_fusion, discriminator_loss
from mmsokd.losses.at import ATLoss, at_loss
from mmsokd.losses.base import LossResult, TermLoss, in_fp32
from mmsokd.losses.cka import PCKALoss, RCKALoss, linear_cka, pcka_loss, rcka_loss
from mmsokd.losses.crd import CRDLoss, nce_loss
from mmsokd.losses.cwd import CWDLogitsLoss, CWDLoss, cwd_loss
from mmsokd.losses.dist import DISTLoss, dist_loss
from mmsokd.losses.dkd import DKDLoss, dkd_loss
from mmsokd.losses.dpd import DPDLoss, advantage_weight
from mmsokd.losses.drkd import DRKDLoss, rectified
from mmsokd.losses.fgd import FGDLoss, fgd_focal_loss, fgd_loss
from mmsokd.losses.fitnet import FitNetLoss, fitnet_loss
from mmsokd.losses.fmkt import FMKTLoss, flow_ends, fmkt_loss
from mmsokd.losses.ital import ITALLoss, teaching_score
from mmsokd.losses.kd import KDLoss, kd_loss
from mmsokd.losses.ld import LDLoss, ld_loss
from mmsokd.losses.mgd import MGDLoss, mgd_loss
from mmsokd.losses.mtkdssr import MTKDSSRLoss, channel_loss, response_loss, review_loss
from mmsokd.losses.pkd import PKDLoss, pkd_loss
from mmsokd.losses.reviewkd import ReviewKDLoss, hcl_loss
from mmsokd.losses.rkd import RKDLoss, rkd_loss
from mmsokd.losses.skd import StudentFriendlyKDLoss, skd_loss
from mmsokd.losses.sp import SPLoss, sp_loss
from mmsokd.losses.vid import VIDLoss, vid_loss

__all__ = [
    'ACKDLoss',
    'ATLoss',
    'CRDLoss',
    'CWDLogitsLoss',
    'CWDLoss',
    'DISTLoss',
    'DKDLoss',
    'DPDLoss',
    'DRKDLoss',
    'FGDLoss',
    'FMKTLoss',
    'FitNetLoss',
    'ITALLoss',
    'KDLoss',
    'LDLoss',
    'LossResult',
    'MGDLoss',
    'MTKDSSRLoss',
    'PCKALoss',
    'PKDLoss',
    'RCKALoss',
    'RKDLoss',
    'ReviewKDLoss',
    'SPLoss',
    'StudentFriendlyKDLoss',
    'TermLoss',
    'VIDLoss',
    'advantage_weight',
    'at_loss',
    'attention_fusion',
    'channel_loss',
    'cwd_loss',
    'discriminator_loss',
    'dist_loss',
    'dkd_loss',
    'fgd_focal_loss',
    'fgd_loss',
    'fitnet_loss',
    'flow_ends',
    'fmkt_loss',
    'hcl_loss',
    'in_fp32',
    'kd_loss',
    'ld_loss',
    'linear_cka',
    'mgd_loss',
    'nce_loss',
    'pcka_loss',
    'pkd_loss',
    'rcka_loss',
    'rectified',
    'response_loss',
    'review_loss',
    'rkd_loss',
    'skd_loss',
    'sp_loss',
    'teaching_score',
    'vid_loss',
]
