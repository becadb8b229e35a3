"""SFTN: PSPNet, ResNet-101-D8, fine-tuned for ResNet-18-D8."""

_base_ = ['mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py', '../../_base_/sftn.py']

model = dict(
    _delete_=True,
    type='mmsokd.SFTNTeacherTrainer',
    teacher=dict(
        cfg=_base_.model,
        checkpoint=(
            'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/'
            'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'
        ),
    ),
    student=dict(cfg='mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    stages=['backbone.layer1', 'backbone.layer2', 'backbone.layer3'],
    kl=dict(tap='decode_head.conv_seg'),
)
# several GPUs: the transforms' BatchNorm is synchronised, as both networks' is
sync_bn = 'torch'
