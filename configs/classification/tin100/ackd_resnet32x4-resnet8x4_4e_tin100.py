"""The student with ACKD: learners on the three stages, fused by attention, and a discriminator."""

_base_ = './_base_/resnet32x4-resnet8x4_4e_tin100.py'

model = dict(
    terms=dict(
        loss_ackd=dict(type='mmsokd.ACKDLoss', tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'head.fc'])
    )
)
