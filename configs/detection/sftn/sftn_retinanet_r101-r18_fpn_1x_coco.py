"""SFTN: RetinaNet, ResNet-101, fine-tuned for ResNet-18."""

_base_ = ['mmdet::retinanet/retinanet_r101_fpn_1x_coco.py', '../../_base_/sftn.py']

# mmdet freezes the stem and layer1, which would let no branch bend the teacher before layer2
_base_.model.backbone.frozen_stages = -1
model = dict(
    _delete_=True,
    type='mmsokd.SFTNTeacherTrainer',
    teacher=dict(
        cfg=_base_.model,
        checkpoint=(
            'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/'
            'retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'
        ),
    ),
    student=dict(cfg='{{ fileDirname }}/../_base_/retinanet_r18_branches.py'),
    # behind each stage but the last; FPN reads layer2 and layer3 too
    stages=['backbone.layer1', 'backbone.layer2', 'backbone.layer3'],
    kl=dict(tap='bbox_head.retina_cls', activation='sigmoid'),
)
