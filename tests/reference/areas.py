"""Slow twins for areas: plain loops. Imports nothing from mmsokd."""


def count(boxes, scores, height, width):
    """How many boxes of positive score hold each cell's centre."""
    out = [[[0] * width for _ in range(height)] for _ in boxes]
    for n, (sample, chances) in enumerate(zip(boxes, scores, strict=True)):
        for (x1, y1, x2, y2), chance in zip(sample, chances, strict=True):
            for i in range(height):
                for j in range(width):
                    if chance > 0 and x1 <= j + 0.5 < x2 and y1 <= i + 0.5 < y2:
                        out[n][i][j] += 1
    return out


def area_loss(student, teacher, weight, normalization):
    n, c, h, w = student.shape
    total, covered = 0.0, 0
    for b in range(n):
        for i in range(h):
            for j in range(w):
                m = float(weight[b, 0, i, j])
                covered += m > 0
                total += m * sum(float(student[b, k, i, j] - teacher[b, k, i, j]) ** 2 for k in range(c))
    power = sum(float(x) ** 2 for x in teacher.ravel()) / teacher.size if normalization == 'teacher' else 1.0
    return total / (n * c * h * w) if normalization == 'all' else total / max(covered * c, 1) / power
