"""SoKD on FMKT: ResNet-32x4 -> ResNet-8x4 on CIFAR-100. The teacher's stage 2 is refined in place."""

_base_ = './fmkt_resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(type='mmsokd.SoKDDistiller', refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer2'))
