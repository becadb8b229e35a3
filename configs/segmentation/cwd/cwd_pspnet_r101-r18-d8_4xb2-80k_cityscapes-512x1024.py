"""CWD: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# temperature and weight: those of the published code on features
model = dict(terms=dict(loss_cwd=dict(type='mmsokd.CWDLoss', tap='decode_head.bottleneck', tau=4.0, loss_weight=50.0)))
