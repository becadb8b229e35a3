"""TST + SoKD + SKD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100: TST's pictures, SoKD's features, SKD's outputs."""

_base_ = '../classification/sokd/sokd_fitnet_resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(
    type='mmsokd.TSTDistiller',
    terms=dict(loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='head.fc', loss_weight=1.0)),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    augmenter=dict(type='mmsokd.ImageAugmenter', rgb=True),  # as CIFAR's pictures are loaded
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
custom_hooks = [*_base_.custom_hooks, dict(type='mmsokd.TSTHook', epochs=[30, 90], passes=30)]
