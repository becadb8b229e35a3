"""The student of the small pair: ResNet-8."""

_base_ = './resnet8x4_4e_tin100.py'

model = dict(backbone=dict(widths=(16, 16, 32, 64)), head=dict(in_channels=64))
