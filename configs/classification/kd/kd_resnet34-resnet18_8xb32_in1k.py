"""KD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# temperature and weight: MMRazor's for this pair
model = dict(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc', tau=1.0, loss_weight=5.0)))
