"""SoKD on PCKA: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = './pcka_pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# width of the area head: ours, as in ../sokd
model = dict(type='mmsokd.SoKDDistiller', areas=dict(type='mmsokd.DistinctiveAreaDetector', feat_channels=64))
