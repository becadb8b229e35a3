"""Slow twins of the losses on relations, one pair or triple at a time. Imports nothing from mmsokd."""

import numpy as np


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
