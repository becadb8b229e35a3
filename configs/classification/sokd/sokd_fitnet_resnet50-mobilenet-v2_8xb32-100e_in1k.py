"""SoKD on FitNet hints: ResNet-50 -> MobileNetV2."""

_base_ = '../fitnet/fitnet_resnet50-mobilenet-v2_8xb32-100e_in1k.py'

model = dict(
    type='mmsokd.SoKDDistiller',
    # 64 [ours]: at the default width of 256 the area head would cost nine students
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8, feat_channels=64),
)
