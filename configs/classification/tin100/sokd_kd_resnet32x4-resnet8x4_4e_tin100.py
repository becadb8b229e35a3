"""The student with SoKD on KD: the teacher's second stage is refined in place, and its logits follow."""

_base_ = './kd_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(type='mmsokd.SoKDDistiller', refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer2'))
