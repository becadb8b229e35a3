"""DRKD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# temperature 1, as KD's of sigmoids here: the paper's 6 is for the softmax of a classifier
model = dict(
    terms=dict(
        loss_drkd=dict(
            type='mmsokd.DRKDLoss',
            tap='bbox_head.retina_cls',
            num_classes=80,
            activation='sigmoid',
            tau=1.0,
            loss_weight=1.0,
        )
    )
)
