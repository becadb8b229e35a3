"""SoKD's hooks and areas for CIFAR-100, both as in the authors' fork: the policy is searched for 20 of 240 epochs."""

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.PolicySearchHook', search_epochs=20),
    dict(type='mmsokd.DAMHook'),
    dict(type='mmsokd.StudentCheckpointHook'),
]
cifar100_areas = dict(
    type='mmsokd.DistinctiveAreaDetector',
    num_areas=8,
    num_classes=100,
    agreement_weight=1000.0,
    area_weight=1000.0,
    normalization='all',
)
