"""SoKD on AT: ResNet-34 -> ResNet-18."""

_base_ = './at_resnet34-resnet18_8xb32_in1k.py'

model = dict(
    type='mmsokd.SoKDDistiller',
    # 64 [ours]: at the default width of 256 the area head would cost nearly a student
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8, feat_channels=64),
)
