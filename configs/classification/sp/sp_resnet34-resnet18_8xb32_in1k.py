"""SP: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weight: RepDistiller's on CIFAR-100
model = dict(terms=dict(loss_sp=dict(type='mmsokd.SPLoss', tap='backbone.layer4', loss_weight=3000.0)))
