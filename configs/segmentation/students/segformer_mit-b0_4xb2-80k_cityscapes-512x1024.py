"""SegFormer MiT-B0 at 512 x 1024 for 80k iterations; mmseg ships it at 1024 x 1024 for 160k.

Optimizer, warm-up and poly are mmseg's for SegFormer, the poly ended at 80k; the data are those of the convolutional
pairs, and so is the test on whole pictures, where mmseg's slides a window [ours].
"""

_base_ = [
    'mmseg::_base_/models/segformer_mit-b0.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]

data_preprocessor = dict(size=(512, 1024))
checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth'
model = dict(
    data_preprocessor=data_preprocessor, backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(pos_block=dict(decay_mult=0.0), norm=dict(decay_mult=0.0), head=dict(lr_mult=10.0))
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=80000, by_epoch=False),
]
