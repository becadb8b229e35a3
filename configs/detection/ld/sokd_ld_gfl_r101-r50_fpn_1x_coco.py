"""SoKD on LD: GFL, ResNet-101 -> ResNet-50. The teacher's stage 3 is refined in place."""

_base_ = './ld_gfl_r101-r50_fpn_1x_coco.py'

model = dict(type='mmsokd.SoKDDistiller', refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3'))
