"""The ledger: what every candidate was worth, over all the steps it was offered in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.influence import WindowError
from curate.policies import Array

SMALLEST_STRATUM = 3


def standardise(values: Array, strata: Array | None = None) -> Array:
    """Values of one step to mean 0 and spread 1, within each stratum where there is one.

    Influences of different steps are not on one scale, and those of different
    labels seldom (DESIGN 3.10). A stratum of fewer than three rows is measured
    against the whole step instead. A step whose values are all equal scores 0.

    Args:
        values: shape (n,). strata: the label of each row, shape (n,), or None.
    """
    scores = _centred(values)
    if strata is not None:
        for stratum in np.unique(strata):
            own = strata == stratum
            if own.sum() >= SMALLEST_STRATUM:
                scores[own] = _centred(values[own])
    return scores


def _centred(values: Array) -> Array:
    spread = values.std()
    centred: Array = values - values.mean()
    return centred / spread if spread > 1e-12 * np.abs(values).max(initial=0.0) else centred * 0.0


@dataclass(frozen=True)
class Scores:
    """One row per candidate.

    score: what the budget ranks, shape (N,). seen: steps it was offered in, (N,).
    influences: mean over occurrences per target, loss units, (Q, N); None if the
    policy does not look at influences.
    errors: expected absolute error of the mean influence, (N,); windows: what each
    window's were worth. Where they were asked for.
    """

    score: Array
    seen: Array
    influences: Array | None
    errors: Array | None = None
    windows: Sequence[WindowError] = ()


class Ledger:
    """Adds up values and influences, step by step. Memory: O(N Q)."""

    def __init__(self, candidates: int, targets: int, strata: Array | None) -> None:
        self._strata = strata
        self._score = np.zeros(candidates)
        self._seen = np.zeros(candidates, dtype=np.int64)
        self._influences = np.zeros((targets, candidates))

    def add(self, rows: Array, values: Array, influences: Array | None) -> Array:
        """Enter one step; returns the standardised values, shape (n,)."""
        strata = None if self._strata is None else self._strata[rows]
        scores = standardise(values, strata)
        np.add.at(self._score, rows, scores)
        np.add.at(self._seen, rows, 1)
        if influences is not None:
            for total, found in zip(self._influences, influences, strict=True):
                np.add.at(total, rows, found)
        return scores

    def scores(self, *, with_influences: bool) -> Scores:
        """Means over occurrences; a candidate never offered scores 0."""
        times = np.maximum(self._seen, 1)
        return Scores(
            self._score / times,
            self._seen,
            self._influences / times if with_influences else None,
        )
