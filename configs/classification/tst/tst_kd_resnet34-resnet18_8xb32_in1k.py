"""TST on KD: ResNet-34 -> ResNet-18 on ImageNet; bursts, temperature and weight are the paper's."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

model = dict(
    type='mmsokd.TSTDistiller',
    terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=1.0)),
    augmenter=dict(type='mmsokd.ImageAugmenter'),
)
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[10, 25], passes=5),
    dict(type='mmsokd.StudentCheckpointHook'),
]
