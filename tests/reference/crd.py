"""Slow twin of CRD's noise-contrastive estimation, one pair at a time. Imports nothing from mmsokd."""

import math

import numpy as np


def embed(feats, weight, bias):
    out = []
    for feat in feats:
        vector = weight @ feat.reshape(feat.shape[0], -1).mean(1) + bias
        out.append(vector / np.sqrt((vector**2).sum()))
    return out


def normalizer(queries, bank, keys, temperature):
    """``M`` times the mean of ``exp(similarity / temperature)`` over the drawn keys."""
    powers = [math.exp((q * bank[k]).sum() / temperature) for q, row in zip(queries, keys, strict=True) for k in row]
    return len(bank) * sum(powers) / len(powers)


def nce(queries, bank, keys, temperature, z):
    """``keys``: a row a query, its own first."""
    total = 0.0
    for query, row in zip(queries, keys, strict=True):
        chances = [math.exp((query * bank[k]).sum() / temperature) / z for k in row]
        noise = (len(row) - 1) / len(bank)
        own, *others = [p / (p + noise) for p in chances]
        total -= math.log(own) + sum(math.log(1 - h) for h in others)
    return total / len(queries)


def remember(bank, index, embeddings, momentum):
    bank = bank.copy()
    for i, embedding in zip(index, embeddings, strict=True):
        row = momentum * bank[i] + (1 - momentum) * embedding
        bank[i] = row / np.sqrt((row**2).sum())
    return bank
