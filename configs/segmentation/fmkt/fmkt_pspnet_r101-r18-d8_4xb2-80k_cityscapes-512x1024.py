"""FMKT: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# steps and metric: the authors' code for classifiers
model = dict(
    terms=dict(
        loss_fmkt=dict(
            type='mmsokd.FMKTLoss',
            tap=['decode_head.bottleneck', 'decode_head.conv_seg'],
            steps=8,
            metric='dist',
            tau=1.0,
            loss_weight=1.0,
        )
    )
)
