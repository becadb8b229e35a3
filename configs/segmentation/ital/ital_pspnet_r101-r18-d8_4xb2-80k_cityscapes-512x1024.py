"""ITAL: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    terms=dict(
        loss_ital=dict(
            type='mmsokd.ITALLoss',
            tap=['decode_head.bottleneck', 'decode_head.conv_seg'],
            lr=0.05,
            tau=4.0,
            loss_weight=1.0,
        )
    )
)
