"""SoKD on FitNet hints: ResNet-34 -> ResNet-18.

The pair is the paper's [a public review]; teacher checkpoint and schedule are mmpretrain's, whose 100 epochs are also
the authors' fork's.
"""

_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../../_base_/sokd_in1k.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmpretrain::resnet/resnet34_8xb32_in1k.py',
        checkpoint=(
            'https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth'
        ),
    ),
    # stage 3 of 4, stride 16, and the weight are ours
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3', loss_weight=1.0)),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=dict(type='mmsokd.DistinctiveAreaDetector', num_areas=8),
)
