"""RetinaNet, ResNet-18, of which SFTN's branches are made: they read another network's features.

ImageNet's statistics are not theirs, so that BatchNorm takes its own.
"""

_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

model = dict(backbone=dict(norm_eval=False))
