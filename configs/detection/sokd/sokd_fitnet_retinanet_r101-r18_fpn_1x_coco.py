"""SoKD on FitNet hints: RetinaNet, ResNet-101 -> ResNet-18.

The pair is ours.
"""

_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint=(
            'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/'
            'retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'
        ),
    ),
    # all FPN levels are hints; the weight and 16 areas a level are ours, neither source tells them for COCO
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=16),
)
