"""SoKD on DPD: ResNet-34 -> ResNet-18. The teacher's stage 3 is refined in place."""

_base_ = './dpd_resnet34-resnet18_8xb32_in1k.py'

model = dict(type='mmsokd.SoKDDistiller', refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3'))
