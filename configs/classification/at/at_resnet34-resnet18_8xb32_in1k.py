"""AT: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weight: the benchmarks' (mdistiller for this pair, at all stages); the last two stages: the paper's on ImageNet
model = dict(
    terms=dict(
        loss_at3=dict(type='mmsokd.ATLoss', tap='backbone.layer3', loss_weight=1000.0),
        loss_at4=dict(type='mmsokd.ATLoss', tap='backbone.layer4', loss_weight=1000.0),
    )
)
