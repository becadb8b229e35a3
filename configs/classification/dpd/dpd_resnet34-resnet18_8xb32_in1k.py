"""DPD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

model = dict(terms=dict(loss_dpd=dict(type='mmsokd.DPDLoss', tap='head.fc', alpha=0.5, tau=4.0, loss_weight=1.0)))
