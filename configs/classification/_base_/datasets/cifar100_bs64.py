"""mmpretrain's CIFAR-100 (random crops of 4 pixels' padding, flips) in batches of 64, as the benchmarks' have it."""

_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

train_dataloader = dict(batch_size=64, persistent_workers=True)
val_dataloader = dict(batch_size=64, persistent_workers=True)
test_dataloader = dict(batch_size=64)
