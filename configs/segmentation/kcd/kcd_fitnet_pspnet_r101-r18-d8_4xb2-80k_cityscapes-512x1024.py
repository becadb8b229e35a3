"""KCD on FitNet: PSPNet, ResNet-101-D8 -> ResNet-18-D8. The student learns 512 of 2048 channels, and 128 of 512."""

_base_ = '../fitnet/fitnet_pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    terms=dict(
        loss_hint=dict(adapter=dict(type='mmsokd.ChannelMatching')),
        loss_head=dict(adapter=dict(type='mmsokd.ChannelMatching')),
    )
)
