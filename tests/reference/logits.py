"""Slow twins of the losses on logits, one prediction at a time. Imports nothing from mmsokd."""

import math

import numpy as np

from tests.reference.plain import kl, softmax


def predictions(logits):
    """(N, K) or (N, K, H, W) -> a list of K numbers each, picture by picture and row by row."""
    if logits.ndim == 2:
        return [list(row) for row in logits]
    n, _, h, w = logits.shape
    return [list(logits[i, :, y, x]) for i in range(n) for y in range(h) for x in range(w)]


def kd(student, teacher, tau=4.0, activation='softmax'):
    values = []
    for s, t in zip(predictions(student), predictions(teacher), strict=True):
        if activation == 'softmax':
            values.append(kl(softmax(t, tau), softmax(s, tau)))
        else:
            chances = [[1 / (1 + math.exp(-v / tau)) for v in row] for row in (s, t)]
            values.append(sum(kl([q, 1 - q], [p, 1 - p]) for p, q in zip(*chances, strict=True)))
    return tau**2 * sum(values) / len(values)


def dkd(student, teacher, target, alpha=1.0, beta=8.0, tau=4.0):
    """``target``: one class a prediction, in their order; None is left out."""
    values = []
    for s, t, y in zip(predictions(student), predictions(teacher), target, strict=True):
        if y is None:
            continue
        p, q = softmax(s, tau), softmax(t, tau)
        tckd = kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
        others = [k for k in range(len(p)) if k != y]
        nckd = kl([q[k] / (1 - q[y]) for k in others], [p[k] / (1 - p[y]) for k in others])
        values.append(alpha * tckd + beta * nckd)
    return tau**2 * sum(values) / len(values)


def drkd(student, teacher, target, tau=6.0, activation='softmax'):
    """``target``: as of :func:`dkd`; None leaves the teacher as it is."""
    rows = []
    for t, y in zip(predictions(teacher), target, strict=True):
        top = t.index(max(t))
        if y is not None and y != top:
            t[top], t[y] = t[y], t[top]
        rows.append(t)
    return kd(np.array(predictions(student)), np.array(rows), tau, activation)


def weighted_kd(student, teacher, weights, tau):
    """Of one weight a prediction, whose sum need not be 1."""
    pairs = zip(predictions(student), predictions(teacher), weights, strict=True)
    return tau**2 * sum(w * kl(softmax(t, tau), softmax(s, tau)) for s, t, w in pairs) / sum(weights)


def dpd_weights(student, teacher, target, alpha=0.5, clip=100.0):
    """``target``: as of :func:`dkd`; None has the weight 1."""
    weights = []
    for s, t, y in zip(predictions(student), predictions(teacher), target, strict=True):
        ours, theirs = (0.0 if y is None else -math.log(softmax(x)[y]) for x in (s, t))
        weights.append(min(max(math.exp(alpha * (ours - theirs)), 1 / clip), clip))
    return weights


def ital_weights(feature, student, teacher, target, lr=0.05, beta=1.0):
    """``feature``: as the logits; ``target``: as of :func:`dkd`, None has no weight, if another one has."""
    scores = []
    for h, s, t, y in zip(*map(predictions, (feature, student, teacher)), target, strict=True):
        if y is None:
            scores.append(-math.inf)
            continue
        excess = [p - (k == y) for k, p in enumerate(softmax(s))]
        gradient = [[e * x for x in (*h, 1.0)] for e in excess]  # of the last layer and its bias
        size = sum(g * g for row in gradient for g in row)
        towards = sum(e * (a - b) for e, a, b in zip(excess, s, t, strict=True))
        scores.append(-beta * (lr**2 * size - 2 * lr * towards))
    return softmax(scores)


def dist(student, teacher, beta=1.0, gamma=1.0, tau=1.0):
    p, q = (np.array([softmax(row, tau) for row in predictions(x)]) for x in (student, teacher))
    inter = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return tau**2 * (beta * (1 - inter) + gamma * (1 - intra))
