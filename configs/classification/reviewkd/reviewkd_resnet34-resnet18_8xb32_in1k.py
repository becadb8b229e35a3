"""ReviewKD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weight: mdistiller's for this pair, whose WARMUP_EPOCHS=1 is none, since it counts epochs from 1. Departures: there
# the pooled vector is a fifth level, and the levels are taken before their last ReLU (STU_PREACT=True)
model = dict(
    terms=dict(
        loss_reviewkd=dict(
            type='mmsokd.ReviewKDLoss',
            tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4'],
            loss_weight=1.0,
        )
    ),
)
