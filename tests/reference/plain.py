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


def bilinear(maps, size):
    """(N, C, H, W) at another size: each new cell's centre, clamped to the old ones' centres."""
    n, c, h, w = maps.shape
    out = np.zeros((n, c, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * h / size[0] - 0.5, 0.0)
            x = max((j + 0.5) * w / size[1] - 0.5, 0.0)
            y0, x0 = min(int(y), h - 1), min(int(x), w - 1)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = maps[:, :, y0, x0] * (1 - (x - x0)) + maps[:, :, y0, x1] * (x - x0)
            low = maps[:, :, y1, x0] * (1 - (x - x0)) + maps[:, :, y1, x1] * (x - x0)
            out[:, :, i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return out
