"""SoKD on FitNet hints: DeepLabV3, ResNet-101-D8 -> ResNet-18-D8."""

_base_ = '../fitnet/fitnet_deeplabv3_r101-r18-d8_4xb2-80k_cityscapes-512x1024.py'

# The teacher's last stage has 2048 channels: at wider adapters and heads SoKD would cost more than half a student.
model = dict(
    type='mmsokd.SoKDDistiller',
    terms=dict(
        loss_hint=dict(adapter=dict(type='mmsokd.SoKDAdapter', feat_channels=64)),
        loss_head=dict(adapter=dict(type='mmsokd.SoKDAdapter', feat_channels=64)),
    ),
    # 16 areas and the head's width are ours
    areas=dict(type='mmsokd.DistinctiveAreaDetector', feat_channels=32),
)
