"""The teacher: ResNet-32x4, twice six epochs: it learns more slowly than the student, and trails it after one cycle."""

_base_ = './resnet8x4_4e_tin100.py'

model = dict(backbone=dict(depth=32))

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
param_scheduler = dict(
    _delete_=True,
    type='CosineRestartLR',
    periods=[6, 6],
    restart_weights=[1, 1],
    eta_min=0,
    by_epoch=True,
    convert_to_iter_based=True,
)
