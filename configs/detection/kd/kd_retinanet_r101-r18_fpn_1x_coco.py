"""KD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# each of a position's 9 x 80 sigmoids by itself, as the head's focal loss takes them; temperature and weight: ours
model = dict(
    terms=dict(
        loss_kd=dict(type='mmsokd.KDLoss', tap='bbox_head.retina_cls', activation='sigmoid', tau=1.0, loss_weight=1.0)
    ),
)
