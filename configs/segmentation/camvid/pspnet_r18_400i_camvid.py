"""The student: PSPNet ResNet-18 at stride 16 with a head of 64 channels."""

_base_ = ['mmseg::_base_/models/pspnet_r50-d8.py', './camvid.py']

norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), norm_cfg=norm_cfg),
    decode_head=dict(in_channels=512, channels=64, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=None,
)
