"""PKD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# weight: the authors' for RetinaNet (in MMRazor, on four of the five levels)
model = dict(terms=dict(loss_pkd=dict(type='mmsokd.PKDLoss', tap='neck', loss_weight=10.0)))
