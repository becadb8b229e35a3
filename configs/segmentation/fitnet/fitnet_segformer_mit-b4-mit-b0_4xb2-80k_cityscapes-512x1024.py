"""FitNet: SegFormer, MiT-B4 -> MiT-B0.

The pair is ours. The teacher learned at 1024 x 1024 for 160k iterations, the student at 512 x 1024 for 80k.
"""

_base_ = ['../students/segformer_mit-b0_4xb2-80k_cityscapes-512x1024.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmseg::segformer/segformer_mit-b4_8xb1-160k_cityscapes-1024x1024.py',
        checkpoint=(
            'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b4_8x1_1024x1024_160k_cityscapes/'
            'segformer_mit-b4_8x1_1024x1024_160k_cityscapes_20211207_080709-07f6c333.pth'
        ),
    ),
    # the hints and their weights are ours
    terms=dict(
        loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone[3]', loss_weight=1.0),
        loss_head=dict(type='mmsokd.FitNetLoss', tap='decode_head.fusion_conv', loss_weight=1.0),
    ),
)
# several GPUs: the adapters' BatchNorm is synchronised, as the student's is
sync_bn = 'torch'
# the modules of distillation start from nothing, as the decode head does, and learn at its rate [ours]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(terms=dict(lr_mult=10.0), areas=dict(lr_mult=10.0))))
