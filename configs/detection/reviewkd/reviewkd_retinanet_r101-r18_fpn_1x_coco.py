"""ReviewKD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# weight: the authors' for RetinaNet, ResNet-101 -> ResNet-50
model = dict(terms=dict(loss_reviewkd=dict(type='mmsokd.ReviewKDLoss', tap='neck', loss_weight=1.0)))
