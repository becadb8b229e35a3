"""IAKD: PSPNet, ResNet-101-D8 -> ResNet-18-D8. The last three stages are swapped by chance, without any term."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    type='mmsokd.IAKDDistiller',
    stages=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
    probability=[(0.0, 0.5), (0.75, 0.0)],
)
