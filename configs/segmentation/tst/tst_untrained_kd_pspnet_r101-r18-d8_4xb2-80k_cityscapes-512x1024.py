"""TST's control: the doubled batch with the untrained augmenter, no stage II."""

_base_ = './tst_kd_pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
