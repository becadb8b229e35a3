"""TST + SoKD + SKD: TST's pictures, SoKD's features, SKD's outputs. One burst, as with TST alone."""

_base_ = './sokd_fitnet_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(
    type='mmsokd.TSTDistiller',
    terms=dict(loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='head.fc')),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    augmenter=dict(type='mmsokd.ImageAugmenter'),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
custom_hooks = [*_base_.custom_hooks, dict(type='mmsokd.TSTHook', epochs=[1], passes=2)]
