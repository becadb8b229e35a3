"""DIST: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# all numbers: MMRazor's for this pair
model = dict(terms=dict(loss_dist=dict(type='mmsokd.DISTLoss', tap='head.fc', beta=1.0, gamma=1.0, tau=1.0, loss_weight=2.0)))
