"""SoKD on DRKD: RetinaNet, ResNet-101 -> ResNet-18. The teacher's stage 3 is refined in place."""

_base_ = './drkd_retinanet_r101-r18_fpn_1x_coco.py'

model = dict(type='mmsokd.SoKDDistiller', refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3'))
