"""CRD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weight: RepDistiller's, which mdistiller keeps for this pair. The two banks take 2 x 1281167 x 128 x 4 bytes
# = 1.3 GB on every GPU and in every checkpoint, of which the last is kept
model = dict(
    terms=dict(loss_crd=dict(type='mmsokd.CRDLoss', tap='backbone.layer4', num_samples=1281167, loss_weight=0.8))
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
