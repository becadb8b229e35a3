"""SFTN + SoKD: ResNet-32x4, trained for ResNet-8x4 by SFTN, teaches it by SoKD on FitNet hints, on CIFAR-100."""

_base_ = '../classification/sokd/sokd_fitnet_resnet32x4-resnet8x4_1xb64_cifar100.py'

model = dict(teacher=dict(checkpoint='work_dirs/sftn_resnet32x4-resnet8x4_1xb64_cifar100/teacher_epoch_240.pth'))
