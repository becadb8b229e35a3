"""IAKD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100. Each of the three stages is swapped by chance, without any term."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(
    type='mmsokd.IAKDDistiller',
    stages=['backbone.layer1', 'backbone.layer2', 'backbone.layer3'],
    # from a half to none at epoch 180, before the rate's last drop but one
    probability=[(0.0, 0.5), (0.75, 0.0)],
)
