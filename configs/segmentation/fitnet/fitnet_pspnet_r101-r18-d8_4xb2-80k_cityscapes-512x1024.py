"""FitNet: PSPNet, ResNet-101-D8 -> ResNet-18-D8.

The pair is that of the RCKA paper's table; both checkpoints, and so the numbers, are mmseg's.
"""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# the hints and their weights are ours
model = dict(
    terms=dict(
        loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer4', loss_weight=1.0),
        loss_head=dict(type='mmsokd.FitNetLoss', tap='decode_head.bottleneck', loss_weight=1.0),
    )
)
