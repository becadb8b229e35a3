"""RCKA: PSPNet, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# Ours. Late, since the first logits are small, and this loss does not see their scale: its gradient would be large.
model = dict(
    terms=dict(
        loss_rcka=dict(type='mmsokd.RCKALoss', tap='decode_head.conv_seg', loss_weight=[(0.0, 0.0), (0.25, 1.0)])
    )
)
