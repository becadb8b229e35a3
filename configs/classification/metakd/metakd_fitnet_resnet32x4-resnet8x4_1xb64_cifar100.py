"""Meta-KD on FitNet: ResNet-32x4 -> ResNet-8x4 on CIFAR-100. A network refines the teacher's stage 2."""

_base_ = '../fitnet/fitnet_resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(refine=dict(type='mmsokd.KnowledgeRefiner', hidden=64))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.SeedHook'),
    dict(type='mmsokd.MetaRefineHook', interval=5),
    dict(type='mmsokd.StudentCheckpointHook'),
]
