"""The demo's student with SoKD on FitNet hints."""

_base_ = ['./retinanet_r18-narrow_shapes.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/retinanet_r18-wide_shapes.py',
        checkpoint='work_dirs/demo/teacher/last.pth',
    ),
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8),  # of P3's 256 cells, P4's 64, P5's 16
)
