"""SoKD on FitNet hints: GFL, ResNet-101 -> ResNet-50.

Teacher and student are those of mmdet's localization distillation configs (configs/ld).
"""

_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint=(
            'https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/'
            'gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth'
        ),
    ),
    # all FPN levels are hints; the weight and 16 areas a level are ours, neither source tells them for COCO
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=16),
)
