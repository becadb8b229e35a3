"""SFTN's loss on a classifier, one picture at a time. Imports nothing from mmsokd."""

import math

from tests.reference.plain import kl, softmax


def sftn(teacher, branches, labels, teacher_weight=1.0, kl_weight=3.0, branch_weight=1.0, tau=1.0):
    """The three sums of Park et al.'s loss, weighted: the teacher's, the branches' KL and the branches' own.

    ``teacher`` and each of ``branches``: rows of logits; ``labels``: one class a row.
    """
    rows = range(len(labels))

    def cross_entropy(logits):
        return sum(-math.log(softmax(list(logits[i]), 1.0)[labels[i]]) for i in rows) / len(rows)

    def divergence(logits):  # KL(branch || teacher)
        pairs = [(softmax(list(logits[i]), tau), softmax(list(teacher[i]), tau)) for i in rows]
        return tau**2 * sum(kl(q, t) for q, t in pairs) / len(rows)

    count = len(branches)
    return (
        teacher_weight * cross_entropy(teacher),
        kl_weight / count * sum(divergence(q) for q in branches),
        branch_weight / count * sum(cross_entropy(q) for q in branches),
    )
