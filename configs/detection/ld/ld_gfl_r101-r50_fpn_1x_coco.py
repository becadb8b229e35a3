"""LD: GFL, ResNet-101 -> ResNet-50."""

_base_ = '../_base_/gfl_r101-r50_fpn_1x_coco.py'

# temperature and weight: mmdet's (configs/ld), whose mean goes over the 17 bins too
model = dict(terms=dict(loss_ld=dict(type='mmsokd.LDLoss', tap='bbox_head[1]', tau=10.0, loss_weight=0.25 / 17)))
