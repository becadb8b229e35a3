"""SoKD's hooks on ImageNet. The policy is searched for 5 epochs, in the authors' fork as here of 100."""

_base_ = './sokd.py'

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.SeedHook'),
    dict(type='mmsokd.PolicySearchHook', search_epochs=5),
    dict(type='mmsokd.DAMHook'),
    dict(type='mmsokd.StudentCheckpointHook'),
]
