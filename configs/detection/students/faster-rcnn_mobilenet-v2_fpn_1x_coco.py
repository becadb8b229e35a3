"""Faster R-CNN with MobileNetV2, which mmdet does not ship; the choices below are ours."""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        # Strides 4, 8, 16, 32. The last is the 1x1 conv to 1280 channels: index 6, one before, would leave that conv
        # without gradient, which DistributedDataParallel refuses.
        out_indices=(1, 2, 4, 7),
        # as mmdet's ResNets: all up to stride 4 frozen, BatchNorm in eval mode, since a GPU sees two pictures
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
