"""EKD: ResNet-18 beside a ResNet-34 that learns with it, on ImageNet. Guided modules at the four stages."""

_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../../_base_/sokd_in1k.py']

model = dict(
    _delete_=True,
    type='mmsokd.OnlineDistiller',
    student=_base_.model,
    online_teacher='mmpretrain::resnet/resnet34_8xb32_in1k.py',
    terms=dict(
        loss_guide=dict(
            type='mmsokd.FitNetLoss',
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
            loss_weight=1.0,
        ),
        loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=4.0, loss_weight=1.0),
    ),
)
