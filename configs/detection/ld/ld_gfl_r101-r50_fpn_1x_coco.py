"""LD: GFL, ResNet-101 -> ResNet-50."""

_base_ = '../_base_/gfl_r101-r50_fpn_1x_coco.py'

# temperature: the paper's. weight: ours, that of GFL's own loss of the same distributions, a mean as well (there over
# all levels at once); mmdet's 0.25 (configs/ld) is of a sum over the positions
model = dict(terms=dict(loss_ld=dict(type='mmsokd.LDLoss', tap='bbox_head[1]', tau=10.0, loss_weight=0.25)))
