"""ACKD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(
    terms=dict(
        loss_ackd=dict(
            type='mmsokd.ACKDLoss',
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'head.fc'],
            loss_weight=1.0,
        )
    )
)
