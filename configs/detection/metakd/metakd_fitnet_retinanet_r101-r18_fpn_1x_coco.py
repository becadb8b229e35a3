"""Meta-KD on FitNet: RetinaNet, ResNet-101 -> ResNet-18. Each level of the neck has a refiner of its own."""

_base_ = '../fitnet/fitnet_retinanet_r101-r18_fpn_1x_coco.py'

model = dict(refine=dict(type='mmsokd.KnowledgeRefiner', hidden=64))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.SeedHook'),
    dict(type='mmsokd.MetaRefineHook', interval=5),
    dict(type='mmsokd.StudentCheckpointHook'),
]
