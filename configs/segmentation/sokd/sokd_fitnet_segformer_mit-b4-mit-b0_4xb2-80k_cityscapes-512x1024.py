"""SoKD on FitNet hints: SegFormer, MiT-B4 -> MiT-B0."""

_base_ = '../fitnet/fitnet_segformer_mit-b4-mit-b0_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    type='mmsokd.SoKDDistiller',
    # at stride 4 the inferred 256 channels would cost three students
    terms=dict(loss_head=dict(adapter=dict(type='mmsokd.SoKDAdapter', feat_channels=64))),
    # 16 areas and the head's width are ours
    areas=dict(type='mmsokd.DistinctiveAreaDetector', feat_channels=64),
)
