"""The student with FitNet, whose teacher's feature a network refines by what that does to the student (Meta-KD)."""

_base_ = './fitnet_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(refine=dict(type='mmsokd.KnowledgeRefiner', hidden=64))
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.MetaRefineHook', interval=5),
    dict(type='mmsokd.StudentCheckpointHook'),
]
