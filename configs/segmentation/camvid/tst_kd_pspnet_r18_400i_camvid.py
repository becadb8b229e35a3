"""The student with TST on KD; a burst before the first and the sixth pass of nine [ours; the paper's: 0, 6, 12]."""

_base_ = './kd_pspnet_r18_400i_camvid.py'

model = dict(type='mmsokd.TSTDistiller', augmenter=dict(type='mmsokd.ImageAugmenter'))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[0, 6]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
