"""The student with plain KD."""

_base_ = './_base_/resnet32x4-resnet8x4_4e_tin100.py'

model = dict(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=4.0)))
