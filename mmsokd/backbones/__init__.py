"""The CIFAR distillation zoo: the networks that distillation papers compare on 32 x 32 pictures."""

from mmsokd.backbones.mobilenet import CIFARMobileNetV2
from mmsokd.backbones.resnet import CIFARResNet
from mmsokd.backbones.shufflenet import CIFARShuffleNetV1, CIFARShuffleNetV2
from mmsokd.backbones.vgg import CIFARVGG
from mmsokd.backbones.wrn import WideResNet

__all__ = ['CIFARVGG', 'CIFARMobileNetV2', 'CIFARResNet', 'CIFARShuffleNetV1', 'CIFARShuffleNetV2', 'WideResNet']
