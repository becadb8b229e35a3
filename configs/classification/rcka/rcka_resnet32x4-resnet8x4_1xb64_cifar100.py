"""RCKA: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

# weight: the default of the authors' code, for both parts
model = dict(terms=dict(loss_rcka=dict(type='mmsokd.RCKALoss', tap='head.fc', loss_weight=1.0)))
