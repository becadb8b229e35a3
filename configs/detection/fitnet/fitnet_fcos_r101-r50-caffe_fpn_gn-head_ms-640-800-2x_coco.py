"""FitNet: FCOS, ResNet-101 -> ResNet-50.

Chosen so that teacher (40.8 AP) and student (38.5 AP) are those of the RCKA paper's table, to compare with.
"""

_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint=(
            'https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/'
            'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth'
        ),
    ),
    # all FPN levels are hints; the weight is ours
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
)
