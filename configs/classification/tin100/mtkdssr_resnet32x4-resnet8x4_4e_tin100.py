"""The student after MTKD-SSR: stage by stage, with self-reflection."""

_base_ = './_base_/resnet32x4-resnet8x4_4e_tin100.py'

model = dict(
    terms=dict(
        loss_ssr=dict(
            type='mmsokd.MTKDSSRLoss', tap=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'head.fc']
        )
    )
)
