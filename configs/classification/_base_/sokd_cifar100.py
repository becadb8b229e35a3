"""SoKD's hooks for CIFAR-100: the policy is searched for 20 of 240 epochs, as in the authors' fork."""

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.PolicySearchHook', search_epochs=20),
    dict(type='mmsokd.DAMHook'),
    dict(type='mmsokd.StudentCheckpointHook'),
]
