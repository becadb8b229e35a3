"""The student with plain CWD on the decode head's feature. The hooks are SoKD's: without its plug-ins they rest."""

_base_ = ['./pspnet_r18_400i_camvid.py', '../../_base_/sokd.py']

model = dict(
    _delete_=True,
    type='mmsokd.Distiller',
    student=_base_.model,
    teacher=dict(cfg='{{ fileDirname }}/pspnet_r34_800i_camvid.py', checkpoint='camvid_teacher.pth'),
    # Temperature and weight are those of CWD's published code on features. The adapter is the one that it has without
    # SoKD, so that both runs have the same; what SoKDAdapter did instead is in the README.
    terms=dict(
        loss_cwd=dict(
            type='mmsokd.CWDLoss',
            tap='decode_head.bottleneck',
            adapter=dict(type='mmsokd.ConvAdapter'),
            tau=4.0,
            loss_weight=50.0,
        )
    ),
)
