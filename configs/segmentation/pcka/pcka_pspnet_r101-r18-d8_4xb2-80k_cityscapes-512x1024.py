"""PCKA: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# patches: the authors'; weight: theirs of a detector's level
model = dict(
    terms=dict(loss_pcka=dict(type='mmsokd.PCKALoss', tap='decode_head.bottleneck', patch_size=16, loss_weight=10.0))
)
