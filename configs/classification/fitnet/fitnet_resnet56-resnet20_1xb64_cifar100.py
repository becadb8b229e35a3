"""FitNet: ResNet-56 -> ResNet-20 on CIFAR-100."""

_base_ = ['../cifar_zoo/resnet20_1xb64_cifar100.py', '../_base_/sokd_cifar100.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/../cifar_zoo/resnet56_1xb64_cifar100.py',
        checkpoint='work_dirs/resnet56_1xb64_cifar100/epoch_240.pth',
    ),
    # hint layer, regressor and weight: RepDistiller's
    terms=dict(
        loss_hint=dict(
            type='mmsokd.FitNetLoss', tap='backbone.layer2', adapter=_base_.cifar100_regressor, loss_weight=100.0
        )
    ),
    probe_size=32,
)
