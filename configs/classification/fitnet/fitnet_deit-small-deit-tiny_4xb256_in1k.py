"""FitNet: DeiT-small -> DeiT-tiny.

The pair is ours; teacher checkpoint and 300 epochs are mmpretrain's.
"""

_base_ = ['mmpretrain::deit/deit-tiny_4xb256_in1k.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(
        cfg='mmpretrain::deit/deit-small_4xb256_in1k.py',
        checkpoint=(
            'https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
        ),
    ),
    # the ninth of twelve blocks, where three quarters of the network are done, and the weight are ours
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layers.8', loss_weight=1.0)),
)
