"""SoKD on FitNet hints: DeepLabV3, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../fitnet/fitnet_deeplabv3_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# 16 areas and the head's width are ours
model = dict(type='mmsokd.SoKDDistiller', areas=dict(type='mmsokd.DistinctiveAreaDetector', feat_channels=64))
