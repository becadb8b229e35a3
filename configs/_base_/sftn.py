"""SFTN's hooks: beside checkpoints there is the teacher alone, from which any distillation goes on."""

custom_imports = dict(imports=['mmsokd'], allow_failed_imports=False)
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.StudentCheckpointHook'),
]
