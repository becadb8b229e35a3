"""StudentFriendlyKD: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    terms=dict(loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='decode_head.conv_seg', loss_weight=1.0))
)
# the simplifier's own rate: that of PESF-KD's adapter
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
