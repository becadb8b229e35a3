"""FitNet: GFL, ResNet-101 -> ResNet-50.

Teacher and student are those of mmdet's localization distillation configs (configs/ld).
"""

_base_ = '../_base_/gfl_r101-r50_fpn_1x_coco.py'

# all FPN levels are hints; the weight is ours
model = dict(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)))
