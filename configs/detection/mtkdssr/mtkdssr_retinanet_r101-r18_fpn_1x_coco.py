"""MTKDSSR: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

model = dict(
    terms=dict(
        loss_ssr=dict(
            type='mmsokd.MTKDSSRLoss',
            tap=['neck', 'bbox_head.retina_cls'],
            num_responses=5,
            activation='sigmoid',
            tau=1.0,
            loss_weight=1.0,
        )
    )
)
