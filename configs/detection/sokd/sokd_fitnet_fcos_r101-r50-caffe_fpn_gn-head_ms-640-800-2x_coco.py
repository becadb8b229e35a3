"""SoKD on FitNet hints: FCOS, ResNet-101 -> ResNet-50."""

_base_ = '../fitnet/fitnet_fcos_r101-r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py'

model = dict(type='mmsokd.SoKDDistiller')  # 16 areas a level [ours]: no source tells them for COCO
