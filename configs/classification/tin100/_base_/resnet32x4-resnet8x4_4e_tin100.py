"""ResNet-32x4 -> ResNet-8x4 on ten classes of Tiny ImageNet, for the hosts, which add the terms.

The hooks are SoKD's: without a policy and areas they rest.
"""

_base_ = '../resnet8x4_4e_tin100.py'

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(cfg='{{ fileDirname }}/../resnet32x4_12e_tin100.py', checkpoint='tin100_teacher.pth'),
    probe_size=32,
)
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.PolicySearchHook'),
    dict(type='mmsokd.DAMHook'),
    dict(type='mmsokd.StudentCheckpointHook'),
]
