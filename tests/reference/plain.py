"""What several slow twins need, of plain numbers. Imports nothing from mmsokd."""

import math

import numpy as np


def softmax(values, tau=1.0):
    """Of a list of numbers."""
    top = max(values)
    powers = [math.exp((v - top) / tau) for v in values]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def nearest(plane, size, point):
    """(H, W) at another size: the cell in which each new cell's ``point`` lies, 0 its corner and 0.5 its centre."""
    (h, w), (height, width) = plane.shape, size
    rows, columns = ([int((i + point) * a / b) for i in range(b)] for a, b in ((h, height), (w, width)))
    return np.array([[plane[y, x] for x in columns] for y in rows])
