"""The zoo's networks as straight-line functions in eval mode. Imports nothing from mmsokd.

Each takes a network's tensors one by one in the order in which it uses them, and checks their shapes: so all of them
are used, and the sizes asked for sum up to the number of parameters.
"""

import math

import torch
from torch.nn import functional as F


class Weights:
    """Hands out tensors in order. ``count`` is the sum of the parameters' sizes so far, by the formulas below."""

    def __init__(self, tensors):
        self.left = list(tensors)
        self.count = 0

    def take(self, *shape):
        tensor = self.left.pop(0)
        assert tuple(tensor.shape) == shape, (tuple(tensor.shape), shape)
        return tensor

    def conv(self, x, out, kernel, stride=1, groups=1, bias=False):
        into = x.shape[1] // groups
        self.count += kernel * kernel * into * out + bias * out
        weight = self.take(out, into, kernel, kernel)
        return F.conv2d(x, weight, self.take(out) if bias else None, stride, kernel // 2, groups=groups)

    def norm(self, x):
        channels = x.shape[1]
        self.count += 2 * channels
        weight, bias, mean, variance = (self.take(channels).view(1, -1, 1, 1) for _ in range(4))
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def linear(self, x, out):
        self.count += x.shape[1] * out + out
        weight, bias = self.take(out, x.shape[1]), self.take(out)
        return (x[:, None] * weight).sum(-1) + bias

    def conv_norm(self, *args, **kwargs):
        return self.norm(self.conv(*args, **kwargs))


def relu(x):
    return x.clamp(min=0)


def shuffle(x, groups):
    """Output channel i * groups + j is input channel j * (C / groups) + i."""
    size = x.shape[1] // groups
    return x[:, [j * size + i for i in range(size) for j in range(groups)]]


def resnet(w, x, depth, widths=(16, 16, 32, 64)):
    feats = [relu(w.conv_norm(x, widths[0], 3))]
    for stage in (1, 2, 3):
        x = feats[-1]
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 1 and block == 0 else 1
            y = relu(w.conv_norm(x, widths[stage], 3, stride))
            y = w.conv_norm(y, widths[stage], 3)
            x = relu(y + (x if x.shape == y.shape else w.conv_norm(x, widths[stage], 1, stride)))
        feats.append(x)
    return feats


def resnet50(w, x):
    x = relu(w.conv_norm(x, 64, 3))
    feats = [x]
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first if block == 0 else 1
            y = relu(w.conv_norm(x, width, 1))
            y = relu(w.conv_norm(y, width, 3, stride))
            y = w.conv_norm(y, 4 * width, 1)
            x = relu(y + (w.conv_norm(x, 4 * width, 1, stride) if block == 0 else x))
        feats.append(x)
    return feats


def wrn(w, x, depth, k):
    x = w.conv(x, 16, 3)
    feats = [x]
    for stage, width in enumerate((16 * k, 32 * k, 64 * k)):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            active = relu(w.norm(x))
            y = relu(w.norm(w.conv(active, width, 3, stride)))
            y = w.conv(y, width, 3)
            x = y + (x if x.shape[1] == width else w.conv(active, width, 1, stride))
        feats.append(x)
    return [*feats, relu(w.norm(x))]


def vgg(w, x, convs):
    feats = []
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        if stage in (1, 2, 3):
            x = F.max_pool2d(x, 2)
        for _ in range(convs):
            x = relu(w.conv_norm(x, width, 3, bias=True))
        feats.append(x)
    return feats


def mobilenet(w, x, half=2):
    x = relu(w.conv_norm(x, 32 // half, 3, 2))
    feats = [x]
    # (expansion, channels, blocks, stride, whether the benchmark reads the feature behind it)
    rows = [
        (1, 16, 1, 1, False),
        (6, 24, 2, 1, True),
        (6, 32, 3, 2, True),
        (6, 64, 4, 2, False),
        (6, 96, 3, 1, True),
        (6, 160, 3, 2, False),
        (6, 320, 1, 1, True),
    ]
    for expansion, channels, blocks, first, read in rows:
        for block in range(blocks):
            hidden = x.shape[1] * expansion
            y = relu(w.conv_norm(x, hidden, 1))
            y = relu(w.conv_norm(y, hidden, 3, first if block == 0 else 1, groups=hidden))
            y = w.conv_norm(y, channels // half, 1)
            x = x + y if x.shape == y.shape else y
        if read:
            feats.append(x)
    return [*feats, relu(w.conv_norm(x, 1280, 1))]


def shufflenet_v1(w, x):
    x = relu(w.conv_norm(x, 24, 1))
    feats = [x]
    for stage, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4))):
        for block in range(blocks):
            down = block == 0
            out = width - x.shape[1] if down else width
            groups = 1 if stage == 0 and down else 3
            y = shuffle(relu(w.conv_norm(x, out // 4, 1, groups=groups)), groups)
            y = relu(w.conv_norm(y, out // 4, 3, 2 if down else 1, groups=out // 4))
            y = w.conv_norm(y, out, 1, groups=3)
            x = relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if down else y + x)
        feats.append(x)
    return feats


def shufflenet_v2(w, x):
    x = relu(w.conv_norm(x, 24, 1))
    feats = [x]
    for width, blocks in ((116, 4), (232, 8), (464, 4)):
        half = width // 2
        for block in range(blocks):
            if block == 0:
                a = w.conv_norm(x, x.shape[1], 3, 2, groups=x.shape[1])
                a = relu(w.conv_norm(a, half, 1))
                b = x
            else:
                a, b = x[:, :half], x[:, half:]
            b = relu(w.conv_norm(b, half, 1))
            b = w.conv_norm(b, half, 3, 2 if block == 0 else 1, groups=half)
            b = relu(w.conv_norm(b, half, 1))
            x = shuffle(torch.cat([a, b], 1), 2)
        feats.append(x)
    return [*feats, relu(w.conv_norm(x, 1024, 1))]


def classify(w, feat, classes):
    return w.linear(feat.mean((2, 3)), classes)


def he_std(weight):
    """Standard deviation of He et al.'s normal start by fan-out."""
    out, _, height, width = weight.shape
    return math.sqrt(2 / (out * height * width))
