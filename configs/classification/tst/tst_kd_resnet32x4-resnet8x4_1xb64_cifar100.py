"""TST on KD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100; bursts, temperature and weight are the paper's."""

_base_ = '../cifar_zoo/resnet8x4_1xb64_cifar100.py'

model = dict(
    _delete_=True,
    type='mmsokd.TSTDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/../cifar_zoo/resnet32x4_1xb64_cifar100.py',
        checkpoint='work_dirs/resnet32x4_1xb64_cifar100/epoch_240.pth',
    ),
    terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=4.0)),
    augmenter=dict(type='mmsokd.ImageAugmenter', rgb=True),  # as CIFAR's pictures are loaded
    probe_size=32,
)
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[30, 90], passes=30),
    dict(type='mmsokd.StudentCheckpointHook'),
]
