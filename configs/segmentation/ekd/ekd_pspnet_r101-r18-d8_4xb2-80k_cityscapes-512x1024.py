"""EKD: PSPNet, ResNet-18-D8 beside a ResNet-101-D8 that learns with it. Guided modules at the last three stages."""

_base_ = ['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.OnlineDistiller',
    student=_base_.model,
    online_teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        loss_guide=dict(
            type='mmsokd.FitNetLoss',
            tap=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
            loss_weight=1.0,
        ),
        loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg', tau=1.0, loss_weight=10 / 19),
    ),
)
# several GPUs: the guided modules' BatchNorm is synchronised, as the student's is
sync_bn = 'torch'
