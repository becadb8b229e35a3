"""Slow twins of the dense losses in plain Python and numpy, one sample at a time. Imports nothing from mmsokd."""

import math

import numpy as np

from tests.reference.plain import kl, nearest, softmax


def cwd(student, teacher, tau):
    n, c = student.shape[:2]
    pairs = [(student[i, k].ravel().tolist(), teacher[i, k].ravel().tolist()) for i in range(n) for k in range(c)]
    return sum(tau**2 * kl(softmax(t, tau), softmax(s, tau)) for s, t in pairs) / (n * c)


def conv(feat, weight, bias):
    """Of (C, H, W) with an odd kernel and zeros around, position by position."""
    margin = weight.shape[-1] // 2
    _, h, w = feat.shape
    padded = np.zeros((feat.shape[0], h + 2 * margin, w + 2 * margin))
    padded[:, margin : margin + h, margin : margin + w] = feat
    out = np.zeros((weight.shape[0], h, w))
    for y in range(h):
        for x in range(w):
            window = padded[:, y : y + weight.shape[2], x : x + weight.shape[3]]
            for k in range(len(weight)):
                out[k, y, x] = (weight[k] * window).sum() + bias[k]
    return out


def mgd(student, teacher, mask, convs):
    """``convs``: weight and bias of the two convolutions."""
    total = 0.0
    for s, t, m in zip(student, teacher, mask, strict=True):
        hidden = np.array(
            [[[s[k, y, x] * m[0, y, x] for x in range(s.shape[2])] for y in range(s.shape[1])] for k in range(len(s))]
        )
        restored = conv(np.maximum(conv(hidden, *convs[0]), 0), *convs[1])
        total += ((restored - t) ** 2).sum()
    return total / len(student)


def touched(box, y, x):
    """Whether a box in cells touches the cell (y, x), whose corners are (x, y) and (x + 1, y + 1).

    A box of no extent touches the cell it begins in.
    """
    x1, y1, x2, y2 = box
    in_row = (y < y2 and y + 1 > y1) or math.floor(y1) == y
    in_column = (x < x2 and x + 1 > x1) or math.floor(x1) == x
    return in_row and in_column


def fgd_masks(boxes, height, width):
    """One picture's foreground and background scale, cell by cell."""
    cells = [(y, x) for y in range(height) for x in range(width)]
    sizes = [sum(touched(box, *cell) for cell in cells) for box in boxes]
    foreground = np.zeros((height, width))
    for cell in cells:
        around = [size for box, size in zip(boxes, sizes, strict=True) if touched(box, *cell)]
        foreground[cell] = 1 / min(around) if around else 0
    rest = [cell for cell in cells if foreground[cell] == 0]
    background = np.zeros((height, width))
    for cell in rest:
        background[cell] = 1 / len(rest)
    return foreground, background


def fgd_attention(feat, temperature):
    c, h, w = feat.shape
    spatial = [sum(abs(feat[k, y, x]) for k in range(c)) / c for y in range(h) for x in range(w)]
    channel = [sum(abs(v) for v in feat[k].ravel()) / (h * w) for k in range(c)]
    return (
        h * w * np.array(softmax(spatial, temperature)).reshape(h, w),
        c * np.array(softmax(channel, temperature)),
    )


def fgd_relation(feat, block):
    """GCNet's block on one sample; ``block`` holds its arrays by name."""
    _, h, w = feat.shape
    positions = [feat[:, y, x] for y in range(h) for x in range(w)]
    shares = softmax([float(block['key'] @ p + block['key_bias']) for p in positions])
    context = sum(share * p for share, p in zip(shares, positions, strict=True))
    inner = block['down'] @ context + block['down_bias']
    inner = (inner - inner.mean()) / np.sqrt(inner.var() + 1e-5) * block['norm'] + block['norm_bias']
    return feat + (block['up'] @ np.maximum(inner, 0) + block['up_bias'])[:, None, None]


def fgd(student, teacher, boxes, blocks, alpha, beta, gamma, lambda_, temperature):
    """``boxes``: in cells, picture by picture; ``blocks``: the student's and the teacher's relation."""
    n, c, h, w = student.shape
    total = 0.0
    for i in range(n):
        s, t = student[i], teacher[i]
        foreground, background = fgd_masks(boxes[i], h, w)
        (s_space, s_channel), (t_space, t_channel) = fgd_attention(s, temperature), fgd_attention(t, temperature)
        for k in range(c):
            for y in range(h):
                for x in range(w):
                    error = t_space[y, x] * t_channel[k] * (s[k, y, x] - t[k, y, x]) ** 2
                    total += alpha * foreground[y, x] * error + beta * background[y, x] * error
        total += gamma * (np.abs(s_space - t_space).sum() + np.abs(s_channel - t_channel).sum())
        total += lambda_ * ((fgd_relation(s, blocks[0]) - fgd_relation(t, blocks[1])) ** 2).sum()
    return total / n


def windows(side, cells):
    """Where adaptive pooling's cells begin and end."""
    return [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]


def hcl(student, teacher, weight=None):
    """``weight`` (N, 1, H, W): cells' means and the means over the cells are both weighted by it."""
    n, c, h, w = student.shape
    weight = np.ones((n, 1, h, w)) if weight is None else weight
    grids = dict.fromkeys((min(side, h), min(side, w)) for side in (max(h, w), 4, 2, 1))  # each pooling once
    total, shares = 0.0, 0.0
    for level, (rows, columns) in enumerate(grids):
        above, below = 0.0, 0.0
        for i in range(n):
            for y1, y2 in windows(h, rows):
                for x1, x2 in windows(w, columns):
                    m = weight[i, 0, y1:y2, x1:x2]
                    below += c * m.mean()
                    for k in range(c):
                        d = student[i, k, y1:y2, x1:x2] - teacher[i, k, y1:y2, x1:x2]
                        above += m.mean() * ((d * m).sum() / m.sum()) ** 2 if m.sum() else 0
        total += 0.5**level * above / below
        shares += 0.5**level
    return total / shares


def review(feats, sizes, levels):
    """ReviewKD's fusion of one sample without norm layers; ``levels`` holds (weight, bias) of the convs by name."""
    out, deeper = [], None
    for feat, size, level in reversed(list(zip(feats, sizes, levels, strict=True))):
        here = conv(feat, *level['reduce'])
        if deeper is not None:
            deeper = np.array([nearest(plane, here.shape[1:], 0) for plane in deeper])
            share = 1 / (1 + np.exp(-conv(np.concatenate([here, deeper]), *level['attention'])))
            here = here * share[0] + deeper * share[1]
        deeper = np.array([nearest(plane, size, 0) for plane in here])
        out.append(conv(deeper, *level['expand']))
    return out[::-1]


def softplus(value):
    return math.log(1 + math.exp(value))


def vid(student, teacher, variance):
    total = 0.0
    for index in np.ndindex(*student.shape):
        v = variance[index[1]]
        density = math.exp(-((student[index] - teacher[index]) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        total -= math.log(density) + 0.5 * math.log(2 * math.pi)
    return total / student.size


def reaches(box, y, x, reach):
    """Whether the box's sides are at most ``reach`` from the corner (x, y) of a cell."""
    x1, y1, x2, y2 = box
    return max(x - x1, y - y1, x2 - x, y2 - y) <= reach


def ld(student, teacher, boxes, tau):
    """``boxes``: in cells, picture by picture."""
    n, channels, h, w = student.shape
    bins = channels // 4
    found = []
    for i in range(n):
        for y in range(h):
            for x in range(w):
                if not any(touched(box, y, x) and reaches(box, y, x, bins - 1) for box in boxes[i]):
                    continue
                for side in range(4):
                    s, t = (a[i, side * bins : (side + 1) * bins, y, x].tolist() for a in (student, teacher))
                    found.append(tau**2 * kl(softmax(t, tau), softmax(s, tau)))
    return sum(found) / len(found) if found else 0.0
