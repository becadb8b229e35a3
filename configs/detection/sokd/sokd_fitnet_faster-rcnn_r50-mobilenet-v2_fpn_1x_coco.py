"""SoKD on FitNet hints: Faster R-CNN, ResNet-50 -> MobileNetV2."""

_base_ = '../fitnet/fitnet_faster-rcnn_r50-mobilenet-v2_fpn_1x_coco.py'

model = dict(type='mmsokd.SoKDDistiller')  # 16 areas a level [ours]: no source tells them for COCO
