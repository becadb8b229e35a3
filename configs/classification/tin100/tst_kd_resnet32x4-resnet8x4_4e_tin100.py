"""The student with TST on KD. One burst of two passes after the first of four epochs [ours]."""

_base_ = './kd_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(type='mmsokd.TSTDistiller', augmenter=dict(type='mmsokd.ImageAugmenter'))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[1], passes=2),
    dict(type='mmsokd.StudentCheckpointHook'),
]
