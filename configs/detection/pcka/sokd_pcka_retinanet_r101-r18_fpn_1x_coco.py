"""SoKD on PCKA: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = './pcka_retinanet_r101-r18_fpn_1x_coco.py'

model = dict(type='mmsokd.SoKDDistiller')
