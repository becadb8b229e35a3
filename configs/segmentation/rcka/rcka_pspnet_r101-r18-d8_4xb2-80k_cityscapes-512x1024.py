"""RCKA: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# weight: the default of the authors' code for classifiers, for both parts
model = dict(terms=dict(loss_rcka=dict(type='mmsokd.RCKALoss', tap='decode_head.conv_seg', loss_weight=1.0)))
