"""IAKD: ResNet-34 -> ResNet-18 on ImageNet. The last three stages are swapped by chance, without any term."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

model = dict(
    type='mmsokd.IAKDDistiller',
    stages=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
    probability=[(0.0, 0.5), (0.75, 0.0)],
)
