"""FitNet: RetinaNet, ResNeXt-101-64x4d -> ResNet-50.

Chosen so that teacher (41.0 AP) and student (37.4 AP) are those of the RCKA paper's table, to compare with.
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        checkpoint=(
            'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/'
            'retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth'
        ),
    ),
    # all FPN levels are hints; the weight is ours
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
)
