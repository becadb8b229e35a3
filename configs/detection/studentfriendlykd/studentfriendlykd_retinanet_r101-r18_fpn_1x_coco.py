"""StudentFriendlyKD: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

model = dict(
    terms=dict(
        loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='bbox_head.retina_cls', num_classes=80, loss_weight=1.0)
    )
)
# the simplifier's own rate: that of PESF-KD's adapter
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
