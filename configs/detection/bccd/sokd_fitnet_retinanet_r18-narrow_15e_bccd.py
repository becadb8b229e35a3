"""The student with SoKD on FitNet hints: the README's ten lines."""

_base_ = ['./retinanet_r18-narrow_15e_bccd.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(cfg='{{ fileDirname }}/retinanet_r18-wide_24e_bccd.py', checkpoint='bccd_teacher.pth'),
    # 0.1 + 0.1 [ours]: hint and area loss together weigh what FitNet's hint does
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=0.1)),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=16, area_weight=0.1),
)
