"""FitNet: DeepLabV3+, ResNet-101-D8 -> MobileNetV2-D8.

The pair is ours.
"""

_base_ = ['mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint=(
            'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r101-d8_512x1024_80k_cityscapes/'
            'deeplabv3plus_r101-d8_512x1024_80k_cityscapes_20200606_114143-068fcfe9.pth'
        ),
    ),
    # the hints and their weights are ours
    terms=dict(
        loss_hint=dict(
            type='mmsokd.FitNetLoss', student_tap='backbone.layer7', teacher_tap='backbone.layer4', loss_weight=1.0
        ),
        loss_head=dict(type='mmsokd.FitNetLoss', tap='decode_head.sep_bottleneck', loss_weight=1.0),
    ),
)
# several GPUs: the adapters' BatchNorm is synchronised, as the student's is
sync_bn = 'torch'
