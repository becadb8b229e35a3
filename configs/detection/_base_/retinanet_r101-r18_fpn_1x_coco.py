"""RetinaNet, ResNet-101 -> ResNet-18, for the hosts: ../<host> adds the terms.

Teacher, student and schedule are those of ../sokd. The hooks are SoKD's: without a policy and areas they rest, so that
a host alone and with SoKD differ in the model's plug-ins only.
"""

_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint=(
            'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/'
            'retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'
        ),
    ),
)
