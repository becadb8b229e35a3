"""SoKD's hooks. The policy is searched for the first twelfth of the training (ours; COCO's 1 of 12 epochs)."""

custom_imports = dict(imports=['mmsokd'], allow_failed_imports=False)
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.SeedHook'),
    dict(type='mmsokd.PolicySearchHook'),
    dict(type='mmsokd.DAMHook'),
    dict(type='mmsokd.StudentCheckpointHook'),
]
