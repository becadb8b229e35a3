"""The student with plain FitNet hints on every FPN level."""

_base_ = './retinanet_r18-narrow_15e_bccd.py'
custom_imports = dict(imports=['mmsokd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(cfg='{{ fileDirname }}/retinanet_r18-wide_24e_bccd.py', checkpoint='bccd_teacher.pth'),
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
)
