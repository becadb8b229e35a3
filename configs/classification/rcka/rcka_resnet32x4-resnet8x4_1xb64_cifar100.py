"""RCKA: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

# Ours. Late, since the first logits are small, and this loss does not see their scale: its gradient would be large.
model = dict(terms=dict(loss_rcka=dict(type='mmsokd.RCKALoss', tap='head.fc', loss_weight=[(0.0, 0.0), (0.25, 1.0)])))
