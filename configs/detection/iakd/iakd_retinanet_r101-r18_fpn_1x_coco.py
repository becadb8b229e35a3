"""IAKD: RetinaNet, ResNet-101 -> ResNet-18. The last three stages are swapped by chance, without any term."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

model = dict(
    type='mmsokd.IAKDDistiller',
    stages=['backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
    probability=[(0.0, 0.5), (0.75, 0.0)],
)
