"""TST's control: the doubled batch with the untrained augmenter, no stage II."""

_base_ = './tst_kd_pspnet_r18_400i_camvid.py'

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
