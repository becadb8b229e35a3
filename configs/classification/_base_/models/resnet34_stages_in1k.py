"""mmpretrain's ResNet-34 that gives all four stages, for terms that compare them at once. The weights stay the same."""

_base_ = 'mmpretrain::resnet/resnet34_8xb32_in1k.py'

model = dict(backbone=dict(out_indices=(0, 1, 2, 3)))
