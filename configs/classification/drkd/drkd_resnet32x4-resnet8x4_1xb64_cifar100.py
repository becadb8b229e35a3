"""DRKD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(terms=dict(loss_drkd=dict(type='mmsokd.DRKDLoss', tap='head.fc', tau=6.0, loss_weight=1.0)))
