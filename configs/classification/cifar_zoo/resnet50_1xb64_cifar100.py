"""ResNet-50 for 32 x 32 pictures: mmpretrain's own, started as RepDistiller does on CIFAR-100."""

_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar100_240e.py',
    '../_base_/cifar100_runtime.py',
]

model = dict(
    backbone=dict(type='ResNet_CIFAR', depth=50, zero_init_residual=False),
    head=dict(in_channels=2048, init_cfg=None),  # it starts as PyTorch's layers do, as in RepDistiller
)
