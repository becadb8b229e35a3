"""The student with plain KD of the decode head's logits."""

_base_ = './cwd_pspnet_r18_400i_camvid.py'

# temperature and weight: TST's
model = dict(
    terms=dict(
        _delete_=True,
        loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg', tau=1.0, loss_weight=1.5),
    )
)
