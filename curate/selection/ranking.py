"""Ranks of values, and how well two orders agree; equal values share a rank."""

import math

import numpy as np

from curate.selection import Array

SURE = 1.96
"""Standard errors on either side of a 95 % interval."""


def average_ranks(values: Array) -> Array:
    """How many values are below each, shape (n,); equal values have the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks


def correlation(one: Array, other: Array) -> float:
    """Pearson's; NaN where one of them is constant."""
    a, b = one - one.mean(), other - other.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def rank_correlation(one: Array, other: Array) -> float:
    """Spearman's: Pearson's of the ranks."""
    return correlation(average_ranks(one), average_ranks(other))


def fisher_interval(correlation: float, count: int) -> tuple[float, float]:
    """95 % of a correlation over so many rows, by Fisher's transform; -1 to 1 for fewer than 4."""
    if count < 4:
        return -1.0, 1.0
    center = math.atanh(min(max(correlation, -1 + 1e-12), 1 - 1e-12))
    reach = SURE / math.sqrt(count - 3)
    return math.tanh(center - reach), math.tanh(center + reach)


def auroc(scores: Array, positive: Array) -> float:
    """Chance that a positive row scores above a negative one, ties counting half.

    scores: shape (N,). positive: bool, shape (N,), with both kinds in it.
    """
    ranks = average_ranks(scores) + 1
    ones = int(positive.sum())
    zeros = len(positive) - ones
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
