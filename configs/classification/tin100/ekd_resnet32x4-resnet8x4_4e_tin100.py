"""The student with EKD: a teacher that learns beside it, with guided modules at the three stages."""

_base_ = './resnet8x4_4e_tin100.py'

model = dict(
    _delete_=True,
    type='mmsokd.OnlineDistiller',
    student=_base_.model,
    online_teacher='{{ fileDirname }}/resnet32x4_12e_tin100.py',
    terms=dict(
        loss_guide=dict(
            type='mmsokd.FitNetLoss',
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3'],
            adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
        ),
        loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=4.0),
    ),
    probe_size=32,
)
custom_hooks = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.StudentCheckpointHook')]
