"""EKD: RetinaNet, ResNet-18 beside a ResNet-101 that learns with it. Guided modules at the last three stages."""

_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.OnlineDistiller',
    student=_base_.model,
    online_teacher='mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
    terms=dict(
        loss_guide=dict(
            type='mmsokd.FitNetLoss',
            tap=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
            loss_weight=1.0,
        ),
        loss_kd=dict(type='mmsokd.KDLoss', tap='bbox_head.retina_cls', activation='sigmoid', tau=1.0, loss_weight=1.0),
    ),
)
