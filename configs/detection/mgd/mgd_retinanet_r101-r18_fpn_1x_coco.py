"""MGD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# weight and masked share: the authors' for one-stage detectors
model = dict(terms=dict(loss_mgd=dict(type='mmsokd.MGDLoss', tap='neck', lambda_mgd=0.65, loss_weight=2e-5)))
