"""Slow twin of MTKD-SSR in numpy, one position at a time. Imports nothing from mmsokd.

``frozen``: what a gradient must not pass is taken from there, so that finite differences see what autograd does.
"""

import math

import numpy as np

from tests.reference.logits import kd
from tests.reference.plain import bilinear, softmax


def conv(feat, weight, bias=None):
    """(N, C, H, W) with zeros around it; a kernel of odd sides."""
    n, _, height, width = feat.shape
    reach = weight.shape[-1] // 2
    padded = np.pad(feat, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    out = np.zeros((n, len(weight), height, width))
    for y in range(height):
        for x in range(width):
            window = padded[:, None, :, y : y + 2 * reach + 1, x : x + 2 * reach + 1]  # (N, 1, C, k, k)
            out[:, :, y, x] = (window * weight).sum((2, 3, 4))
    return out if bias is None else out + bias[:, None, None]


def conv_norm_relu(feat, layers):
    """``layers``: the weight of a conv, weight and bias of a BatchNorm, its statistics, or None: the batch's, and
    whether there is a ReLU.
    """
    weight, scale, shift, statistics, has_relu = layers
    x = conv(feat, weight)
    mean, var = statistics if statistics is not None else (x.mean((0, 2, 3)), x.var((0, 2, 3)))
    shape = (1, -1, 1, 1)
    x = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5)
    x = x * scale.reshape(shape) + shift.reshape(shape)
    return np.maximum(x, 0) if has_relu else x


def head(feat, layers, dense):
    *norm, weight, bias = layers
    logits = conv(conv_norm_relu(feat, norm), weight, bias)
    return logits if dense else logits.mean((2, 3))


def response(student, target, tau, activation):
    if student.ndim == 4 and student.shape[2:] != target.shape[2:]:
        target = bilinear(target, student.shape[2:])
    return kd(student, target, tau, activation)


def cross_entropy(logits, labels):
    """``labels``: per picture a class, or a plane of classes; -1 is left out."""
    rows = np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])
    flat = np.asarray(labels).reshape(-1).tolist()
    values = [-math.log(softmax(list(row))[y]) for row, y in zip(rows, flat, strict=True) if y >= 0]
    return sum(values) / len(values) if values else 0.0


def responses(levels, stages, heads):
    given = levels[stages:]
    return [head(f, h, given[-1].ndim == 4) for f, h in zip(levels[:stages], heads, strict=False)] + given


def parts(student, teacher, nets, labels, tau=4.0, activation='softmax', review='next', frozen=None):
    """SCD, SRD, CRD and CE.

    ``nets``: dict(fits=..., student=..., teacher=...), each a list of layers; ``labels``: of a size of logits.
    """
    stages = len(nets['fits'])
    ours, theirs = responses(student, stages, nets['student']), responses(teacher, stages, nets['teacher'])
    constant_ours, constant_theirs = frozen or (ours, theirs)
    channel = 0.0
    for fit, s, t in zip(nets['fits'], student, teacher, strict=False):
        a, b = conv_norm_relu(s, fit).mean((2, 3)), t.mean((2, 3))
        channel += ((a - b) ** 2).sum() / b.size
    fit = sum(response(s, t, tau, activation) for s, t in zip(ours, constant_theirs, strict=True))
    pairs = [(k, j) for k in range(len(ours)) for j in range(k + 1, len(ours)) if review == 'all' or j == k + 1]
    reviewed = sum((response(ours[k], constant_ours[j], tau, activation) for k, j in pairs), 0.0)
    auxiliary = 0.0
    for side, heads in ((ours, nets['student']), (theirs, nets['teacher'])):
        auxiliary += sum(cross_entropy(z, labels(z.shape[2:])) for z in side[: len(heads)])
    return channel, fit, reviewed, auxiliary
