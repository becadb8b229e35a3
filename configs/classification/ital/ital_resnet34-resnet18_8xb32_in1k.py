"""ITAL: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

model = dict(
    terms=dict(loss_ital=dict(type='mmsokd.ITALLoss', tap=['neck', 'head.fc'], lr=0.05, tau=4.0, loss_weight=1.0))
)
