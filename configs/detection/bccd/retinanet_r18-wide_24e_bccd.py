"""The teacher: twice the student's width in FPN and head, trained longer."""

_base_ = './retinanet_r18-narrow_15e_bccd.py'

model = dict(neck=dict(out_channels=128), bbox_head=dict(in_channels=128, feat_channels=128))

max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=12)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(interval=12))
