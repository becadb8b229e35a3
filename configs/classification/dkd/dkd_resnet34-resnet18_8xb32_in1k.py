"""DKD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# all numbers: the authors' for this pair
model = dict(
    terms=dict(loss_dkd=dict(type='mmsokd.DKDLoss', tap='head.fc', alpha=1.0, beta=0.5, tau=1.0, loss_weight=1.0))
)
