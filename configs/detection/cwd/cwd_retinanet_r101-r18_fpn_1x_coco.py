"""CWD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# temperature and weight: MMRazor's for RetinaNet, ResNet-101 -> ResNet-50
model = dict(terms=dict(loss_cwd=dict(type='mmsokd.CWDLoss', tap='neck', tau=1.0, loss_weight=10.0)))
