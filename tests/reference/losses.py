"""Slow twins of the losses in plain numpy, one sample and one position at a time. Imports nothing from mmsokd."""

import numpy as np

from tests.reference.logits import dist, kd
from tests.reference.mtkdssr import cross_entropy


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


def fmkt_flow(start, velocity, steps):
    """What each of N steps takes for the end of a flow from ``start``, and where they arrive."""
    state, ends = np.array(start), []
    for i in range(steps):
        way = velocity(state, 1 - i / steps)
        ends.append(start - way)
        state = state - way / steps
    return ends, state


def fmkt_velocity(layers):
    """Of one position's C numbers: ``layers`` holds weights and biases of the time's and of the state's two layers, and
    of the norm.
    """
    (t1, b1, t2, b2), (w1, c1, w2, c2), (scale, shift) = layers

    def velocity(row, time):
        row = row + t2 @ np.maximum(t1[:, 0] * time + b1, 0) + b2
        row = row + w2 @ np.maximum(w1 @ row + c1, 0) + c2
        centred = row - row.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-5) * scale + shift

    return velocity


def fmkt_predictions(feature, layers, head, steps, dense):
    """Each step's logits. ``head``: weight and bias behind the flow."""
    weight, bias = head
    n, _, *size = feature.shape
    cells = feature.reshape(n, feature.shape[1], -1)
    found = np.zeros((steps, n, len(weight), cells.shape[2]))
    for i in range(n):
        for j in range(cells.shape[2]):
            ends, _ = fmkt_flow(cells[i, :, j], fmkt_velocity(layers), steps)
            for k, end in enumerate(ends):
                found[k, i, :, j] = weight @ end + bias
    return found.reshape(steps, n, len(weight), *size) if dense else found.mean(3)


def fmkt(ends, student, teacher, labels, metric, tau, frozen=None):
    """``frozen``: the mean that the student learns, where it is not that of ``ends``; ``labels``: -1 is left out."""
    measures = {'kd': lambda a, b: kd(a, b, tau), 'dist': lambda a, b: dist(a, b, 2.0, 2.0, tau)}
    flow = [measures[metric](end, teacher) + cross_entropy(end, labels) for end in ends]
    return np.mean(flow) + measures[metric](student, np.mean(ends, 0) if frozen is None else frozen)
