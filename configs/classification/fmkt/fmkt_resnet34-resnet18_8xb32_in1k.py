"""FMKT: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# the authors' code: 8 steps, DIST at temperature 1, and weight 1 for this pair, there at a batch of 512
model = dict(
    terms=dict(
        loss_fmkt=dict(
            type='mmsokd.FMKTLoss',
            tap=['backbone.layer4', 'head.fc'],
            steps=8,
            metric='dist',
            tau=1.0,
            loss_weight=1.0,
        )
    )
)
