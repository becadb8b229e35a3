"""The student with TST on FitNet hints; the bursts after a quarter and half of the epochs, as the paper's on COCO."""

_base_ = './fitnet_retinanet_r18-narrow_15e_bccd.py'

model = dict(type='mmsokd.TSTDistiller', augmenter=dict(type='mmsokd.ImageAugmenter'))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[4, 8]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
