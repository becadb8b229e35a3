"""ResNet-32x4 -> ResNet-8x4 on CIFAR-100, for the hosts: ../<host> adds the terms.

The hooks are SoKD's: without a policy and areas they rest.
"""

_base_ = ['../cifar_zoo/resnet8x4_1xb64_cifar100.py', './sokd_cifar100.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/../cifar_zoo/resnet32x4_1xb64_cifar100.py',
        checkpoint='work_dirs/resnet32x4_1xb64_cifar100/epoch_240.pth',
    ),
    probe_size=32,
)
