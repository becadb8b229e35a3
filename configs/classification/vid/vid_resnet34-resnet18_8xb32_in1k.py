"""VID: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weight: RepDistiller's on CIFAR-100, there at all stages
model = dict(terms=dict(loss_vid=dict(type='mmsokd.VIDLoss', tap='backbone.layer3', loss_weight=1.0)))
