"""The teacher: ResNet-32x4, trained half as long again."""

_base_ = './resnet8x4_4e_tin100.py'

model = dict(backbone=dict(depth=32))

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = dict(T_max=max_epochs)
