"""FitNet: DeiT-small -> ResNet-18.

A convolutional student of a transformer; the pair is ours, teacher checkpoint and schedule are mmpretrain's.
"""

_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../../_base_/sokd_in1k.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmpretrain::deit/deit-small_4xb256_in1k.py',
        checkpoint=(
            'https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
        ),
    ),
    # stage 3 of 4 and the ninth of twelve blocks, both 14 x 14, and the weight are ours
    terms=dict(
        loss_hint=dict(
            type='mmsokd.FitNetLoss', student_tap='backbone.layer3', teacher_tap='backbone.layers.8', loss_weight=1.0
        )
    ),
)
