"""RKD: ResNet-34 -> ResNet-18."""

_base_ = '../_base_/resnet34-resnet18_8xb32_in1k.py'

# weights: RepDistiller's on CIFAR-100, which MMRazor takes for this pair (on vectors of unit length)
model = dict(
    terms=dict(
        loss_rkd=dict(
            type='mmsokd.RKDLoss', tap='backbone.layer4', distance_weight=25.0, angle_weight=50.0, loss_weight=1.0
        )
    )
)
