"""PCKA: RetinaNet, ResNet-101 -> ResNet-18."""

_base_ = '../_base_/retinanet_r101-r18_fpn_1x_coco.py'

# patches: the authors'; weight: theirs for RetinaNet, a level, where they take P6 too and do not centre.
# P6 has two patches, whose centred similarities always agree, and P7 one.
model = dict(terms=dict(loss_pcka=dict(type='mmsokd.PCKALoss', tap='neck[:3]', patch_size=16, loss_weight=10.0)))
