"""ACKD: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# the last stage is the decode head's feature: its 512 channels in the teacher, and not stage 4's 2048, are the width of
# the learners' maps
model = dict(
    terms=dict(
        loss_ackd=dict(
            type='mmsokd.ACKDLoss',
            tap=[
                'backbone.layer2',
                'backbone.layer3',
                'backbone.layer4',
                'decode_head.bottleneck',
                'decode_head.conv_seg',
            ],
            loss_weight=1.0,
        )
    )
)
