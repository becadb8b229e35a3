"""ReviewKD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weight: mdistiller's for this pair, there with the pooled vector as a fifth level
model = dict(
    student=dict(backbone=dict(out_indices=(0, 1, 2, 3))),  # its levels; the head still takes the last
    teacher=dict(cfg='{{ fileDirname }}/../_base_/models/resnet34_stages_in1k.py'),
    terms=dict(loss_reviewkd=dict(type='mmsokd.ReviewKDLoss', tap='backbone', loss_weight=1.0)),
)
