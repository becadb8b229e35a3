"""ResNet-34 -> ResNet-18 on ImageNet, for the hosts: ../<host> adds the terms.

The hooks are SoKD's: without a policy and areas they rest.
"""

_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../../_base_/sokd_in1k.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmpretrain::resnet/resnet34_8xb32_in1k.py',
        checkpoint=(
            'https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth'
        ),
    ),
)
