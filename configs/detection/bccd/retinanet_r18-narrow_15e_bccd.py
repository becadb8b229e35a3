"""The student: RetinaNet ResNet-18 with an FPN and a head of 64 channels and two stacked convs."""

_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './bccd.py']

model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(num_classes=3, in_channels=64, feat_channels=64, stacked_convs=2),
)
