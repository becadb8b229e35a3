"""FitNet: ResNet-34 -> ResNet-18.

The pair is the paper's [a public review]; teacher checkpoint and schedule are mmpretrain's, whose 100 epochs are also
the authors' fork's.
"""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# stage 3 of 4, stride 16, and the weight are ours
model = dict(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3', loss_weight=1.0)))
