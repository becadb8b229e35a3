"""SoKD on FitNet hints: DeiT-small -> DeiT-tiny."""

_base_ = '../fitnet/fitnet_deit-small-deit-tiny_4xb256_in1k.py'

model = dict(type='mmsokd.SoKDDistiller', areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8))
