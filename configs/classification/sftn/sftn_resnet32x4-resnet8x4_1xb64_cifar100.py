"""SFTN: ResNet-32x4, trained from scratch for ResNet-8x4, on CIFAR-100."""

_base_ = '../cifar_zoo/resnet32x4_1xb64_cifar100.py'

model = dict(
    _delete_=True,
    type='mmsokd.SFTNTeacherTrainer',
    teacher=_base_.model,
    student=dict(cfg='{{ fileDirname }}/../cifar_zoo/resnet8x4_1xb64_cifar100.py'),
    stages=['backbone.layer1', 'backbone.layer2'],
    kl=dict(tap='head.fc'),
    probe_size=32,
)
custom_hooks = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.StudentCheckpointHook')]
