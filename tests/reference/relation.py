"""Slow twins of the losses on relations, one pair or triple at a time. Imports nothing from mmsokd."""

import math

import numpy as np

from tests.reference.logits import predictions
from tests.reference.plain import bilinear


def vectors(feats):
    return [f.reshape(f.shape[0], -1).mean(1) for f in feats]


def huber(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def rkd(student, teacher, distance_weight=25.0, angle_weight=50.0):
    sides = vectors(student), vectors(teacher)
    n = len(student)
    distances, angles = [], []
    for x in sides:
        d = [[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x]
        mean = np.mean([d[i][j] for i in range(n) for j in range(n) if i != j])
        distances.append([d[i][j] / mean for i in range(n) for j in range(n)])
        cosines = []
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    a, b = x[i] - x[j], x[k] - x[j]
                    size = np.sqrt((a**2).sum() * (b**2).sum())
                    cosines.append((a * b).sum() / size if size else 0.0)
        angles.append(cosines)
    parts = [np.mean([huber(a - b) for a, b in zip(*pair, strict=True)]) for pair in (distances, angles)]
    return distance_weight * parts[0] + angle_weight * parts[1]


def sp(student, teacher):
    n = len(student)
    grams = []
    for feats in (student, teacher):
        gram = np.array([[(a * b).sum() for b in feats] for a in feats])
        grams.append([row / np.sqrt((row**2).sum()) for row in gram])
    return sum(((a - b) ** 2).sum() for a, b in zip(*grams, strict=True)) / n**2


def cka(x, y):
    """By HSIC, from Gram matrices that are centred as such."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, m = ([[sum(a * b for a, b in zip(p, q, strict=True)) for q in z.tolist()] for p in z.tolist()] for z in (x, y))
    k, m = centre @ np.array(k) @ centre, centre @ np.array(m) @ centre
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def rcka(student, teacher, picture_weight=1.0, class_weight=1.0):
    """``student``, ``teacher``: (N, K), or (N, K, H, W), each position of which is a row."""
    s, t = (np.array(predictions(x)) for x in (student, teacher))
    return picture_weight * (1 - cka(s, t)) + class_weight * (1 - cka(s.T, t.T))


def patches(maps, size):
    """(N, H, W), a channel of all pictures -> a list of rows, one a place."""
    height, width = (math.ceil(side / size) for side in maps.shape[1:])
    maps = bilinear(maps[:, None], (height * size, width * size))[:, 0]
    rows = []
    for i in range(height):
        for j in range(width):
            rows.append([v for x in maps for v in x[i * size : (i + 1) * size, j * size : (j + 1) * size].ravel()])
    return np.array(rows)


def pcka(student, teacher, size):
    channels = range(student.shape[1])
    return 1 - np.mean([cka(patches(student[:, c], size), patches(teacher[:, c], size)) for c in channels])
