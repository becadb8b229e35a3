"""The demo's student with plain hints on every FPN level: the host without SoKD."""

_base_ = './retinanet_r18-narrow_shapes.py'
custom_imports = dict(imports=['mmsokd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/retinanet_r18-wide_shapes.py',
        checkpoint='work_dirs/demo/teacher/last.pth',
    ),
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=1.0)),
)
