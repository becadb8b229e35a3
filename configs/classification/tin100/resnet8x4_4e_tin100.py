"""The student: ResNet-8x4."""

_base_ = './tin100.py'

model = dict(
    backbone=dict(type='mmsokd.CIFARResNet', depth=8, widths=(32, 64, 128, 256)),
    head=dict(in_channels=256),
)
