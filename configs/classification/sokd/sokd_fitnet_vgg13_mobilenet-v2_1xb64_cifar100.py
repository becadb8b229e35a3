"""SoKD on FitNet hints: VGG-13 -> MobileNetV2 on CIFAR-100; weights, areas and search of the authors' fork."""

_base_ = ['../cifar_zoo/mobilenet-v2_1xb64_cifar100.py', '../_base_/sokd_cifar100.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/../cifar_zoo/vgg13_1xb64_cifar100.py',
        checkpoint='work_dirs/vgg13_1xb64_cifar100/epoch_240.pth',
    ),
    # the benchmark's hint layer
    terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2')),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=_base_.cifar100_areas,
    keep_host=False,
    probe_size=32,
)
