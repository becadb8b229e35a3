"""TST's control: the doubled batch with the untrained augmenter, no stage II."""

_base_ = './tst_kd_resnet32x4-resnet8x4_4e_tin100.py'

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
