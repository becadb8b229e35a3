"""The student with plain FitNet at the second stage."""

_base_ = './_base_/resnet32x4-resnet8x4_4e_tin100.py'

model = dict(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2')))
