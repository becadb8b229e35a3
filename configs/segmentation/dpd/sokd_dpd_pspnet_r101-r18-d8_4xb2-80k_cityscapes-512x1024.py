"""SoKD on DPD: PSPNet, ResNet-101-D8 -> ResNet-18-D8. The teacher's stage 3 is refined in place."""

_base_ = './dpd_pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(type='mmsokd.SoKDDistiller', refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3'))
