"""SoKD on FitNet hints: ResNet-34 -> ResNet-18."""

_base_ = '../fitnet/fitnet_resnet34-resnet18_8xb32_in1k.py'

model = dict(type='mmsokd.SoKDDistiller', areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8))
