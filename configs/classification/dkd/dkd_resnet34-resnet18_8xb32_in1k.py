"""DKD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# the loss's numbers: the authors' (mdistiller) for this pair, there at a batch of 512. Their WARMUP of one epoch is
# none, since they take min(epoch / WARMUP, 1) and count epochs from 1
model = dict(
    terms=dict(loss_dkd=dict(type='mmsokd.DKDLoss', tap='head.fc', alpha=1.0, beta=0.5, tau=1.0, loss_weight=1.0))
)
