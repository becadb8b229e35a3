"""AT: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# weight: ours, a tenth of what the classification benchmarks take, since the maps of five levels add up
model = dict(terms=dict(loss_at=dict(type='mmsokd.ATLoss', tap='neck', loss_weight=100.0)))
