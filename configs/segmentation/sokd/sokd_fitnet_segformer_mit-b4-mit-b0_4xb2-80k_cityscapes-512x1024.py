"""SoKD on FitNet hints: SegFormer, MiT-B4 -> MiT-B0.

The pair is ours. The teacher learned at 1024 x 1024 for 160k iterations, the student at 512 x 1024 for 80k.
"""

_base_ = ['../students/segformer_mit-b0_4xb2-80k_cityscapes-512x1024.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmseg::segformer/segformer_mit-b4_8xb1-160k_cityscapes-1024x1024.py',
        checkpoint=(
            'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b4_8x1_1024x1024_160k_cityscapes/'
            'segformer_mit-b4_8x1_1024x1024_160k_cityscapes_20211207_080709-07f6c333.pth'
        ),
    ),
    # the hints are ours, and so are their weights, 16 areas, and the area head's width
    terms=dict(
        loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone[3]', loss_weight=1.0),
        loss_head=dict(
            type='mmsokd.FitNetLoss',
            tap='decode_head.fusion_conv',
            # at stride 4 the inferred 256 channels would cost three students
            adapter=dict(type='mmsokd.SoKDAdapter', feat_channels=64, signed=False),
            loss_weight=1.0,
        ),
    ),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=16, feat_channels=64),
)
# adapters and area head start from nothing, as the decode head does, and learn at its rate [ours]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(terms=dict(lr_mult=10.0), areas=dict(lr_mult=10.0))))
# several GPUs: the adapters' BatchNorm is synchronised, as the student's is
sync_bn = 'torch'
