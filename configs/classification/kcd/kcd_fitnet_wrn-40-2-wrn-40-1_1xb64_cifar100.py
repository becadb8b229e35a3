"""KCD on FitNet: WRN-40-2 -> WRN-40-1 on CIFAR-100. The student learns 32 of the teacher's 64 channels."""

_base_ = '../fitnet/fitnet_wrn-40-2-wrn-40-1_1xb64_cifar100.py'

model = dict(terms=dict(loss_hint=dict(adapter=dict(_delete_=True, type='mmsokd.ChannelMatching'))))
