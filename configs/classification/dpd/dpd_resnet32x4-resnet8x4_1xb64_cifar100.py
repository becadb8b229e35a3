"""DPD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(terms=dict(loss_dpd=dict(type='mmsokd.DPDLoss', tap='head.fc', alpha=0.5, tau=4.0, loss_weight=1.0)))
