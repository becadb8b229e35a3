"""KD: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# temperature and weight: those of CWD's published code for this baseline, whose mean goes over the 19 classes too
model = dict(terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg', tau=1.0, loss_weight=10 / 19)))
