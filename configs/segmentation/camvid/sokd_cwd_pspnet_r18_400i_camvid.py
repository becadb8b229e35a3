"""The student with SoKD on CWD: the same term, the teacher's feature refined, and areas beside it."""

_base_ = './cwd_pspnet_r18_400i_camvid.py'

model = dict(type='mmsokd.SoKDDistiller')
