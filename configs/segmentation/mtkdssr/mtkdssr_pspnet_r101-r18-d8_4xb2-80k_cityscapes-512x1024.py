"""MTKDSSR: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    terms=dict(
        loss_ssr=dict(
            type='mmsokd.MTKDSSRLoss',
            tap=['backbone.layer2', 'backbone.layer3', 'backbone.layer4', 'decode_head.conv_seg'],
            loss_weight=1.0,
        )
    )
)
