"""The student with plain FitNet hints on every FPN level."""

_base_ = './retinanet_r18-narrow_15e_bccd.py'
custom_imports = dict(imports=['mmsokd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(cfg='{{ fileDirname }}/retinanet_r18-wide_24e_bccd.py', checkpoint='bccd_teacher.pth'),
    # 0.2 [ours]: the hint, summed over five levels, then weighs as much as the task's losses
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=0.2)),
)
