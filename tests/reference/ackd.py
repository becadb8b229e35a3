"""Slow twin of ACKD in numpy and plain floats, one position at a time. Imports nothing from mmsokd.

``frozen``: what a gradient must not pass is taken from there, so that finite differences see what autograd does.
"""

import math

import numpy as np

from tests.reference.logits import kd
from tests.reference.mtkdssr import conv, conv_norm_relu, cross_entropy
from tests.reference.plain import bilinear, softmax


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def positions(feat, size):
    """(N, C, H, W) as rows (N, P, C): the mean over the map, or the cells of a map of the size."""
    if size is None:
        return feat.mean((2, 3))[:, None]
    resized = feat if feat.shape[2:] == tuple(size) else bilinear(feat, size)
    return np.moveaxis(resized.reshape(*feat.shape[:2], -1), 1, 2)


def learner(feat, layers, size, signed):
    *norm, weight, bias = layers
    rows = positions(conv(conv_norm_relu(feat, norm), weight, bias), size)
    return rows if signed else np.maximum(rows, 0)


def fuse(feats, query):
    """Of a list of L features (N, P, C): their mean, weighted at each position by a softmax over the L."""
    fused = np.zeros_like(feats[0])
    for n in range(fused.shape[0]):
        for p in range(fused.shape[1]):
            scores = [float(e[n, p] @ query) / math.sqrt(len(query)) for e in feats]
            for share, e in zip(softmax(scores), feats, strict=True):
                fused[n, p] += share * e[n, p]
    return fused


def logits(rows, weight, bias, size):
    """(N, P, C) -> (N, K) or (N, K, H, W)."""
    out = rows @ weight.T + bias
    return out[:, 0] if size is None else np.moveaxis(out, 2, 1).reshape(len(out), -1, *size)


def judge(rows, layers):
    """What the discriminator says of each row, as logits."""
    first, first_bias, last, last_bias = layers
    hidden = rows @ first.T + first_bias
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    return (hidden @ last.T + last_bias).reshape(-1)


def parts(student, teacher, nets, labels, tau, signed, frozen=None):
    """Of the auxiliary learners, to the teacher, to the fused response, and the discriminator's.

    ``nets``: dict(learners=..., query=..., classify=..., judge=...); ``labels``: of a size of logits.
    """
    s, t = student[-1], teacher[-1]
    size = s.shape[2:] if s.ndim == 4 else None
    if size is not None and t.shape != s.shape:
        t = bilinear(t, size)
    feats = [learner(f, layers, size, signed) for f, layers in zip(student[:-1], nets['learners'], strict=True)]
    fused = fuse(feats, nets['query'])
    response = logits(fused, *nets['classify'], size)
    responses = [logits(e, *nets['classify'], size) for e in feats] + [response]
    auxiliary = sum(cross_entropy(z, labels(z.shape[2:])) for z in responses)
    said = [judge(x, nets['judge']).tolist() for x in (fused, positions(teacher[-2], size))]
    told = [sum(log_sigmoid(sign * d) for d in rows) / len(rows) for sign, rows in zip((-1, 1), said, strict=True)]
    constant = response if frozen is None else frozen
    to_teacher = kd(response, t, tau, 'softmax') + kd(s, t, tau, 'softmax')
    return auxiliary, to_teacher, kd(s, constant, tau, 'softmax'), -0.5 * sum(told)


def fused_response(student, nets, signed):
    size = student[-1].shape[2:] if student[-1].ndim == 4 else None
    feats = [learner(f, layers, size, signed) for f, layers in zip(student[:-1], nets['learners'], strict=True)]
    return logits(fuse(feats, nets['query']), *nets['classify'], size)
