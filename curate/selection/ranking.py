"""Ranks of values, equal ones sharing theirs."""

import numpy as np

from curate.selection.policies.base import Array


def average_ranks(values: Array) -> Array:
    """How many values are below each, shape (n,); equal values have the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks
