"""IAKD beside KD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = './iakd_resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=4.0, loss_weight=1.0)))
