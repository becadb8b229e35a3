"""FitNet: RetinaNet, ResNet-101 -> ResNet-18.

The pair is ours.
"""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# all FPN levels are hints; the weight is ours
model = dict(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)))
