"""KCD on FitNet: ResNet-32x4 -> ResNet-8x4 on CIFAR-100. Both have 128 channels there."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

# hint layer and weight: RepDistiller's; the matching takes the regressor's place
model = dict(
    terms=dict(
        loss_hint=dict(
            type='mmsokd.FitNetLoss',
            tap='backbone.layer2',
            adapter=dict(type='mmsokd.ChannelMatching'),
            loss_weight=100.0,
        )
    )
)
