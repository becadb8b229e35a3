"""The student after SKD: the teacher's predictions simplified by attention."""

_base_ = './_base_/resnet32x4-resnet8x4_4e_tin100.py'

model = dict(terms=dict(loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='head.fc')))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
