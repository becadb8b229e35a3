"""FitNet: ResNet-50 -> MobileNetV2.

The usual pair has MobileNetV1, which mmpretrain does not have. 100 epochs, as in the authors' fork.
"""

_base_ = ['../students/mobilenet-v2_8xb32-100e_in1k.py', '../../_base_/sokd_in1k.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmpretrain::resnet/resnet50_8xb32_in1k.py',
        checkpoint=(
            'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
        ),
    ),
    # the end of stride 16 in both, and the weight, are ours
    terms=dict(
        loss_hint=dict(
            type='mmsokd.FitNetLoss', student_tap='backbone.layer5', teacher_tap='backbone.layer3', loss_weight=1.0
        )
    ),
)
