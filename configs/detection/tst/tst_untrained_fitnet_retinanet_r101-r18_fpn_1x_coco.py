"""TST's control: the doubled batch with the untrained augmenter, no stage II."""

_base_ = './tst_fitnet_retinanet_r101-r18_fpn_1x_coco.py'

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
