"""SoKD on FitNet hints: Faster R-CNN, ResNet-101 -> ResNet-18."""

_base_ = '../fitnet/fitnet_faster-rcnn_r101-r18_fpn_1x_coco.py'

model = dict(type='mmsokd.SoKDDistiller')  # 16 areas a level [ours]: no source tells them for COCO
