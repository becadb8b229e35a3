"""The teacher with SFTN, for the student: a branch behind the first stage and one behind the second."""

_base_ = './resnet32x4_12e_tin100.py'

model = dict(
    _delete_=True,
    type='mmsokd.SFTNTeacherTrainer',
    teacher=_base_.model,
    student=dict(cfg='{{ fileDirname }}/resnet8x4_4e_tin100.py'),
    stages=['backbone.layer1', 'backbone.layer2'],
    kl=dict(tap='head.fc'),
    probe_size=32,
)
custom_hooks = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.StudentCheckpointHook')]
