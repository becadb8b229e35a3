"""SoKD on FitNet hints: ResNet-50 -> MobileNetV2 on CIFAR-100; weights, areas and search of the authors' fork."""

_base_ = ['../cifar_zoo/mobilenet-v2_1xb64_cifar100.py', '../_base_/sokd_cifar100.py']

model = dict(
    _delete_=True,
    type='mmsokd.SoKDDistiller',
    student=_base_.model,
    teacher=dict(
        cfg='{{ fileDirname }}/../cifar_zoo/resnet50_1xb64_cifar100.py',
        checkpoint='work_dirs/resnet50_1xb64_cifar100/epoch_240.pth',
    ),
    # the benchmark's hint layer; the student's 8 x 8 cells are brought to the teacher's 16 x 16, as its regressor does
    terms=dict(
        loss_hint=dict(
            type='mmsokd.FitNetLoss',
            tap='backbone.layer2',
            adapter=dict(type='mmsokd.SoKDAdapter', resize='conv', signed=False, feat_channels=256),
        )
    ),
    refine=dict(type='mmsokd.FeatureAugmentationNeck'),
    areas=_base_.cifar100_areas,
    keep_host=False,
    probe_size=32,
)
