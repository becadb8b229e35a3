"""ResNet-20 on CIFAR-100."""

_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar100_240e.py',
    '../_base_/cifar100_runtime.py',
]

model = dict(
    backbone=dict(type='mmsokd.CIFARResNet', depth=20),
    head=dict(in_channels=64, init_cfg=None),  # it starts as PyTorch's layers do, as in RepDistiller
)
