"""SoKD on FitNet hints: RetinaNet, ResNeXt-101-64x4d -> ResNet-50."""

_base_ = '../fitnet/fitnet_retinanet_x101-64x4d-r50_fpn_2x_coco.py'

model = dict(type='mmsokd.SoKDDistiller')  # 16 areas a level [ours]: no source tells them for COCO
