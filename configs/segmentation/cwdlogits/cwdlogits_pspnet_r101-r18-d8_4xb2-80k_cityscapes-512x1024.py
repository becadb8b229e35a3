"""CWD on the logits: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# weight: the authors', on logits, temperature 4
model = dict(terms=dict(loss_cwd=dict(type='mmsokd.CWDLogitsLoss', tap='decode_head.conv_seg', loss_weight=3.0)))
