"""SoKD on FitNet hints: ResNet-32x4 -> ShuffleNet on CIFAR-100; weights, areas and search of the authors' fork."""

_base_ = '../fitnet/fitnet_resnet32x4-shufflenet-v1_1xb64_cifar100.py'

# keep_host=False: the area loss takes the hint loss's place, and the hint's weight of 100 has nothing to weigh
model = dict(
    type='mmsokd.SoKDDistiller',
    terms=dict(loss_hint=dict(adapter=dict(_delete_=True, type='mmsokd.SoKDAdapter', resize='conv'), loss_weight=1.0)),
    areas=_base_.cifar100_areas,
    keep_host=False,
)
