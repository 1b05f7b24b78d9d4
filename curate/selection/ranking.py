"""Ranks of values, and how well two orders agree; equal values share a rank, unless told."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from curate.runtime.large import large, pieces, released
from curate.selection import Array

AT_ONCE = 2**18
"""Values that are sorted at once; more are sorted bucket by bucket."""
BUCKETS = 64
SURE = 1.96
"""Standard errors on either side of a 95 % interval."""


def average_ranks(values: Array) -> Array:
    """How many values are below each, shape (n,); equal values have the mean of their places."""
    return _ranked(values, _average, np.float64)


def normal_scores(values: Array) -> Array:
    """Quantiles of the normal distribution in the order of the values, shape (n,), mean 0."""
    scores = average_ranks(values)
    for part in pieces(len(values)):
        chances = torch.from_numpy((scores[part] + 0.5) / len(values))
        scores[part] = torch.special.ndtri(chances).numpy()
    return scores


def descending_ranks(values: Array) -> Array:
    """The place of each value, the highest first, shape (n,), from 1; of equal ones the earlier."""
    return _ranked(values, _ordered, np.int64)


def _average(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks


def _ordered(values: Array) -> Array:
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return ranks


def _ranked(values: Array, rank: Callable[[Array], Array], dtype: type) -> Array:
    """Ranks of any number of values, by a function that ranks some: `_average` or `_ordered`.

    Values go to buckets, from the lowest to the highest, are ranked there, and their ranks go back
    the same way. Memory: some buckets; two arrays of n, in files where they are large.
    """
    if len(values) <= AT_ONCE:
        return rank(values)
    buckets = _Buckets(values)
    ranks, held = large(len(values), dtype), large(len(values), np.float64)
    for part, order, places in buckets.moves():
        held[places] = values[part][order]
    for first, last, alike in buckets.bounds():
        below = len(values) - last if rank is _ordered else first
        if not alike:
            held[first:last] = below + rank(held[first:last])
            released()
        elif rank is _average:  # of many equal values
            held[first:last] = (first + last - 1) / 2
        else:
            for some in pieces(last - first):
                held[first:last][some] = below + np.arange(some.start + 1, some.stop + 1)
    for part, order, places in buckets.moves():
        found: Array = np.empty(len(order), dtype=dtype)
        found[order] = held[places]
        ranks[part] = found
    return ranks


class _Buckets:
    """Where values belong that are more than can be sorted at once, each bucket's in their order.

    A value of which there are many has a bucket of its own.
    """

    def __init__(self, values: Array) -> None:
        sample = np.sort(values[:: max(1, len(values) // 2**16)])
        released()
        edges = np.unique(sample[:: max(1, len(sample) // BUCKETS)])
        self._of = large(len(values), np.uint16)  # which is sorted in no time
        self._sizes = np.zeros(2 * len(edges) + 1, dtype=np.int64)
        for part in pieces(len(values)):
            below = np.searchsorted(edges, values[part])
            at = edges[np.minimum(below, len(edges) - 1)] == values[part]
            self._of[part] = 2 * below + at
            self._sizes += np.bincount(self._of[part], minlength=len(self._sizes))

    def bounds(self) -> Iterator[tuple[int, int, bool]]:
        """The places of each bucket that has any, and whether all in it are equal."""
        ends = np.cumsum(self._sizes)
        for k in np.flatnonzero(self._sizes).tolist():
            yield int(ends[k] - self._sizes[k]), int(ends[k]), k % 2 == 1

    def moves(self) -> Iterator[tuple[slice, Array, Array]]:
        """Parts of the values; the order of each by buckets, and the places they go to in it."""
        free = np.cumsum(self._sizes) - self._sizes
        for part in pieces(len(self._of)):
            of = self._of[part]
            order, counts = np.argsort(of, kind="stable"), np.bincount(of, minlength=len(free))
            within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield part, order, np.repeat(free, counts) + within
            free = free + counts


def correlation(one: Array, other: Array) -> float:
    """Pearson's, of any number of values; NaN where one of them is constant."""
    means, sums = np.zeros((2, 1)), np.zeros((2, 2))
    for part in pieces(len(one)):
        means += np.stack([one[part], other[part]]).sum(axis=1, keepdims=True) / len(one)
    for part in pieces(len(one)):
        both = np.stack([one[part], other[part]]) - means
        sums += both @ both.T
    scale = math.sqrt(sums[0, 0] * sums[1, 1])
    return float(sums[0, 1]) / scale if scale > 0 else float("nan")


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
