"""SoKD on FitNet hints: DeepLabV3+, ResNet-101-D8 -> MobileNetV2-D8."""

_base_ = '../fitnet/fitnet_deeplabv3plus_r101-mobilenet-v2-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    type='mmsokd.SoKDDistiller',
    # at stride 4 the inferred 256 channels would cost half of the student
    terms=dict(loss_head=dict(adapter=dict(type='mmsokd.SoKDAdapter', feat_channels=64))),
    # 16 areas and the head's width are ours
    areas=dict(type='mmsokd.DistinctiveAreaDetector', feat_channels=64),
)
