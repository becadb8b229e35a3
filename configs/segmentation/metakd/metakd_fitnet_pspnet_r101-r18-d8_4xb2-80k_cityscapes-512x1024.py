"""Meta-KD on FitNet: PSPNet, ResNet-101-D8 -> ResNet-18-D8. Both hints have a refiner of their own."""

_base_ = '../fitnet/fitnet_pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(refine=dict(type='mmsokd.KnowledgeRefiner', hidden=64))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.SeedHook'),
    dict(type='mmsokd.MetaRefineHook', interval=5),
    dict(type='mmsokd.StudentCheckpointHook'),
]
