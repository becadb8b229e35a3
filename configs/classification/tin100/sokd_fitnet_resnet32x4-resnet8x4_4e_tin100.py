"""The student with SoKD on FitNet: as in the authors' fork the area loss stands in the place of the host's own."""

_base_ = './fitnet_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(
    type='mmsokd.SoKDDistiller',
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8),
    keep_host=False,
)
