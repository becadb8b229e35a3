"""TST's control: the doubled batch with the untrained augmenter, no stage II."""

_base_ = './tst_fitnet_retinanet_r18-narrow_15e_bccd.py'

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
