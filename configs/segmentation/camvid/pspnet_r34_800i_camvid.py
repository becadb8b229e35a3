"""The teacher: deeper than the student, with a head of twice its width, trained twice as long."""

_base_ = './pspnet_r18_400i_camvid.py'

model = dict(backbone=dict(depth=34), decode_head=dict(channels=128))

max_iters = 800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)]
default_hooks = dict(checkpoint=dict(interval=max_iters))
