"""What the CIFAR-100 pairs share: SoKD's hooks and areas, and FitNet's regressor.

The policy is searched for 20 of 240 epochs and the areas are weighed as in the authors' fork. Without a policy and
areas the hooks rest.
"""

custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.SeedHook'),
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
# RepDistiller's: conv, norm and ReLU for every pair; where the student's map is half the teacher's, it is doubled
cifar100_regressor = dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
cifar100_doubling_regressor = dict(resize='conv', **cifar100_regressor)
