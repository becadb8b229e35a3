"""KCD on FitNet: RetinaNet, ResNet-101 -> ResNet-18. Each level of the neck has a match of its own."""

_base_ = '../fitnet/fitnet_retinanet_r101-r18_fpn_1x_coco.py'

model = dict(terms=dict(loss_hint=dict(adapter=dict(type='mmsokd.ChannelMatching'))))
