"""DPD both ways: two ResNet-8x4 that learn side by side on CIFAR-100, each most where the other is better."""

_base_ = ['../cifar_zoo/resnet8x4_1xb64_cifar100.py', '../_base_/sokd_cifar100.py']

model = dict(
    _delete_=True,
    type='mmsokd.OnlineDistiller',
    student=_base_.model,
    online_teacher='{{ fileDirname }}/../cifar_zoo/resnet8x4_1xb64_cifar100.py',
    terms=dict(loss_dpd=dict(type='mmsokd.DPDLoss', tap='head.fc', alpha=0.5, tau=4.0, loss_weight=1.0)),
    mutual=['loss_dpd'],
    probe_size=32,
)
