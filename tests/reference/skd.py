"""Slow twin of SKD, one prediction and one head at a time. Imports nothing from mmsokd."""

import math

import numpy as np

from tests.reference.plain import kl, softmax


def layer_norm(x, weight, bias, eps=1e-5):
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    return np.array([(v - mean) / math.sqrt(var + eps) * w + b for v, w, b in zip(x, weight, bias, strict=True)])


def attention(tokens, keys, layers, heads):
    """Self-attention of a list of vectors to those at ``keys``; ``layers``: name -> weight, name_bias -> bias."""
    normed = [layer_norm(x, layers['norm'], layers['norm_bias']) for x in tokens]
    queries_keys_values = [layers['qkv'] @ x + layers['qkv_bias'] for x in normed]
    d = len(tokens[0])
    q, k, v = ([row[i * d : (i + 1) * d] for row in queries_keys_values] for i in range(3))
    out = []
    for i in range(len(tokens)):
        found = np.zeros(d)
        for head in range(heads):
            part = slice(head * d // heads, (head + 1) * d // heads)
            scores = [float(q[i][part] @ k[j][part]) / math.sqrt(d // heads) for j in keys]
            for share, j in zip(softmax(scores), keys, strict=True):
                found[part] += share * v[j][part]
        out.append(layers['out'] @ found + layers['out_bias'])
    return out


def simplifier(probs, valid, layers, heads):
    """What is added to each row of ``probs``; ``layers`` has a 'place' where attention goes over the classes."""
    if 'place' in layers:
        rows = []
        for row in probs:
            tokens = [layers['embed'][:, 0] * p + e for p, e in zip(row, layers['place'], strict=True)]
            rows.append([float(x[0]) for x in attention(tokens, range(len(tokens)), layers, heads)])
        return rows
    keys = [i for i, there in enumerate(valid) if there]
    if len(keys) < 4:
        return [[0.0] * len(row) for row in probs]
    return attention([layers['embed'] @ np.array(row) for row in probs], keys, layers, heads)


def target(teacher, valid, layers, heads, tau, softening, residual='logits'):
    """The softened probabilities and the simplified ones, row by row."""
    soft = [softmax(list(row), softening) for row in teacher]
    simple = []
    for row, change in zip(soft, simplifier(soft, valid, layers, heads), strict=True):
        start = [tau * math.log(p) for p in row] if residual == 'logits' else row
        simple.append(softmax([a + b for a, b in zip(start, change, strict=True)], tau))
    return soft, simple


def skd(student, teacher, labels, layers, heads, tau=4.0, softening=4.0, anchor=1.0, residual='logits'):
    """The loss, KL(u || q) and KL(q || student) of rows of logits; None among the ``labels`` is no token."""
    soft, simple = target(teacher, [y is not None for y in labels], layers, heads, tau, softening, residual)
    rows = []
    for s, u, q, y in zip(student, soft, simple, labels, strict=True):
        if y is not None:
            p = softmax(list(s), tau)
            rows.append((tau**2 * kl(q, p) - anchor * math.log(q[y]), kl(u, q), kl(q, p)))
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [0.0, None, None]


def rows_of(logits, classes):
    """(N, K) or (N, A K, H, W) -> one row of K logits an anchor, position by position."""
    maps = logits.reshape(*logits.shape[:2], -1)
    n, channels, positions = maps.shape
    return [
        [float(v) for v in maps[i, a : a + classes, p]]
        for i in range(n)
        for p in range(positions)
        for a in range(0, channels, classes)
    ]


def smallest_box(boxes, labels, size):
    """The class of the smallest box that touches each cell, or None; ``boxes``: of one picture, in cells."""
    height, width = size
    found = []
    for y in range(height):
        row = []
        for x in range(width):
            touching = []
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                right, below = max(math.ceil(x2), math.floor(x1) + 1), max(math.ceil(y2), math.floor(y1) + 1)
                if math.floor(x1) <= x < right and math.floor(y1) <= y < below:
                    touching.append(((x2 - x1) * (y2 - y1), label))
            row.append(min(touching, key=lambda box: box[0])[1] if touching else None)
        found.append(row)
    return found
