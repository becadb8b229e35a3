"""TST's flipped losses in plain Python, element by element; imports nothing from mmsokd."""

import math


def softmax_ce(logits, label, eps=1e-8):
    """-log(1 - p_y + eps)."""
    top = max(logits)
    exps = [math.exp(v - top) for v in logits]
    return -math.log(sum(e for k, e in enumerate(exps) if k != label) / sum(exps) + eps)


def bce(logit, target):
    """Binary cross-entropy with the target swapped."""
    p = 1 / (1 + math.exp(-logit))
    target = 1 - target
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def focal(logit, target, alpha, gamma):
    """Focal loss with 1 - p in the place of p."""
    q = 1 - 1 / (1 + math.exp(-logit))
    if target:
        return -alpha * (1 - q) ** gamma * math.log(q)
    return -(1 - alpha) * q**gamma * math.log(1 - q)


def quality_focal(logit, quality, beta):
    """Quality focal loss of one class, whose target is 0 or a box's quality, with 1 - p in the place of p."""
    q = 1 - 1 / (1 + math.exp(-logit))
    return -(abs(quality - q) ** beta) * (quality * math.log(q) + (1 - quality) * math.log(1 - q))


def l1(pred, target, bound):
    return bound - min(abs(pred - target), bound)


def giou(a, b):
    """1 + GIoU of two boxes."""
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(area) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 + width * height / union - (hull - union) / hull
