"""WRN-16-2 on CIFAR-100."""

_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar100_240e.py',
    '../_base_/cifar100_runtime.py',
]

model = dict(
    backbone=dict(type='mmsokd.WideResNet', depth=16, widen_factor=2),
    # RepDistiller's: the weights start as PyTorch's do, the biases at zero
    head=dict(
        in_channels=128,
        init_cfg=dict(
            type='Kaiming', layer='Linear', a=5**0.5, mode='fan_in', nonlinearity='leaky_relu', distribution='uniform'
        ),
    ),
)
