"""FMKT: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

# steps, metric and temperature are those of the ImageNet config, from the authors' code; the weight is ours
model = dict(
    terms=dict(
        loss_fmkt=dict(
            type='mmsokd.FMKTLoss',
            tap=['backbone.layer3', 'head.fc'],
            steps=8,
            metric='dist',
            tau=1.0,
            loss_weight=0.1,
        )
    )
)
