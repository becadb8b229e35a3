"""Slow twins of the losses in plain numpy, one sample and one position at a time. Imports nothing from mmsokd."""

import numpy as np


def fitnet(student, teacher):
    total, count = 0.0, 0
    for s, t in zip(student.ravel().tolist(), teacher.ravel().tolist(), strict=True):
        total += (s - t) ** 2
        count += 1
    return total / count


def at(student, teacher, p=2.0):
    total = 0.0
    n, _, h, w = student.shape
    for i in range(n):
        maps = []
        for feat in (student[i], teacher[i]):
            q = np.array([[np.mean([abs(v) ** p for v in feat[:, y, x]]) for x in range(w)] for y in range(h)])
            maps.append(q / np.sqrt((q**2).sum()))
        total += ((maps[0] - maps[1]) ** 2).sum()
    return total / (n * h * w)


def pkd(student, teacher):
    """1 - the mean of Pearson's correlation over the channels."""
    rs = [np.corrcoef(student[:, c].ravel(), teacher[:, c].ravel())[0, 1] for c in range(student.shape[1])]
    return 1 - np.mean(rs)
