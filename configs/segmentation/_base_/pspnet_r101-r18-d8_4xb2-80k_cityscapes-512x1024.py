"""PSPNet, ResNet-101-D8 -> ResNet-18-D8, for the hosts: ../<host> adds the terms.

Teacher, student and schedule are those of ../sokd. The hooks are SoKD's: without a policy and areas they rest.
"""

_base_ = ['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint=(
            'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/'
            'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'
        ),
    ),
)
# several GPUs: the adapters' BatchNorm is synchronised, as the student's is
sync_bn = 'torch'
