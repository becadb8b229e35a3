"""StudentFriendlyKD: ResNet-32x4 -> ResNet-8x4 on CIFAR-100."""

_base_ = '../_base_/resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(terms=dict(loss_skd=dict(type='mmsokd.StudentFriendlyKDLoss', tap='head.fc', loss_weight=1.0)))
# the simplifier's own rate: that of PESF-KD's adapter
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'simplifier': dict(lr_mult=1e-3)}))
