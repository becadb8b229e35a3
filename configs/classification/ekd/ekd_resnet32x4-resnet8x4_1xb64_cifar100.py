"""EKD: ResNet-8x4 beside a ResNet-32x4 that learns with it, on CIFAR-100. Guided modules at the three stages."""

_base_ = ['../cifar_zoo/resnet8x4_1xb64_cifar100.py', '../_base_/sokd_cifar100.py']

model = dict(
    _delete_=True,
    type='mmsokd.OnlineDistiller',
    student=_base_.model,
    online_teacher='{{ fileDirname }}/../cifar_zoo/resnet32x4_1xb64_cifar100.py',
    terms=dict(
        loss_guide=dict(
            type='mmsokd.FitNetLoss',
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3'],
            adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
            loss_weight=1.0,
        ),
        loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=4.0, loss_weight=1.0),
    ),
    probe_size=32,
)
