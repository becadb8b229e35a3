"""TST on KD: PSPNet, ResNet-101-D8 -> ResNet-18-D8; bursts, temperature and weights are the paper's."""

_base_ = '../_base_/pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    type='mmsokd.TSTDistiller',
    terms=dict(
        loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg', tau=1.0, loss_weight=1.5),
        loss_auxiliary_kd=dict(type='mmsokd.KDLoss', tap='auxiliary_head.conv_seg', tau=1.0, loss_weight=0.5),
    ),
    augmenter=dict(type='mmsokd.ImageAugmenter'),
)
custom_hooks = [
    dict(type='mmsokd.GuardHook'),
    dict(type='mmsokd.TSTHook', epochs=[0, 6, 12]),
    dict(type='mmsokd.StudentCheckpointHook'),
]
