"""FGD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# weights: the authors' for RetinaNet, which are FGDLoss's defaults
model = dict(terms=dict(loss_fgd=dict(type='mmsokd.FGDLoss', tap='neck', loss_weight=1.0)))
