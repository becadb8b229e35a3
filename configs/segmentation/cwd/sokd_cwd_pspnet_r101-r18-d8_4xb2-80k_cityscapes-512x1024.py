"""SoKD on CWD: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = './cwd_pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    type='mmsokd.SoKDDistiller',
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=16, feat_channels=64),
)
