"""Do scores repeat on other target rows, and what is the best guess at what they would be there?

An influence on a target is a mean over the target's rows, and those are a sample. Choosing top
rows by it fits that sample. So candidates are scored against two disjoint halves of the target,
A and B. What the two share is not sampling noise (DESIGN 3.11), and each half shows how much of
the other can be predicted:

    B_i  ~  b_0 A_i + b_1 f_i1 + b_2 f_i2 + ...                     (least squares over all rows i)

with f any other evidence about a row, such as its losses in training on everything. The errors
of A and B are independent, since no target row is in both, so the fitted values are the best
linear guess at influences on target rows *not seen*: scores that are mostly noise get little
weight, and evidence gets the weight it deserves on this data, none if none. This is the
regression form of empirical Bayes (Fay and Herriot 1979), fitted by cross-halves.

Repeating is not enough to choose by: influences early in a run share what is common to large
rows. So the evidence is added once more, by as much as it agrees with the influences.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from curate.runtime.large import large, pieces
from curate.selection import Array
from curate.selection.ranking import average_ranks, fisher_interval

QUANTILES = np.vectorize(NormalDist().inv_cdf, otypes=[float])
ENOUGH = 0.8
"""Reliability of scores that `rows_needed` is about."""


@dataclass(frozen=True)
class Repeatability:
    """How far scores on one half of the target repeat on the other.

    correlation: of the candidates' influences on the two halves, with its 95 % interval, `low`
        to `high`. reliability: of influences on the whole target, by Spearman and Brown.
    foretold: correlation of final scores made from one half with influences on the other, mean
        of both directions.
    target_rows: rows of the target. rows_needed: about how many would make scores reliable to
        0.8; None where nothing repeats, so that no number can be given.
    """

    correlation: float
    low: float
    high: float
    reliability: float
    foretold: float
    target_rows: int
    rows_needed: int | None

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Shrunk:
    """Scores shrunk to what repeats; normal, with mean 0, higher for better.

    values: shape (N,). by_half: made from the influences on one half alone, shape (2, N), so
    that the other half is free to judge by.
    """

    values: Array
    by_half: Array
    repeats: Repeatability


def shrink(halves: Array, evidence: Array, target_rows: int) -> Shrunk:
    """Score every row by the influence it is likely to have on unseen target rows.

    The score is the normal score of the fitted value, plus rho times the normal score of the
    first evidence, rho being the correlation of normal scores of evidence and influence, where
    it is above 0.

    Args:
        halves: influences on the two halves of the target, shape (2, N).
        evidence: about each row, shape (F, N), finite, higher for better; F may be 0.
        target_rows: of both halves together.
    """
    count = halves.shape[1]
    columns = _Columns(halves, evidence)
    alone = normal_scores(evidence[0]) if len(evidence) else large(count, np.float64)
    by_half, foretold, r = large((2, count), np.float64), [], columns.triangle
    others = [*range(2, len(r[0]))]
    for k, other in ((0, 1), (1, 0)):
        used = [k, *others]
        weights = np.linalg.lstsq(r[:, used], r[:, other], rcond=None)[0]
        if weights[0] < 0:  # by chance: influences do not mean their opposite
            weights = np.append(0.0, np.linalg.lstsq(r[:, others], r[:, other], rcond=None)[0])
        fitted = r[:, used] @ weights
        foretold.append(_correlation(fitted, r[:, other]))
        if not fitted.any():
            weights = np.append(1.0, 0.0 * weights[1:])
        shrunk = normal_scores(columns.combined(used, weights))
        agrees = max(0.0, _agreement(alone, normal_scores(halves[k])))
        for part in pieces(count):
            by_half[k, part] = shrunk[part] + agrees * alone[part]
    values = large(count, np.float64)
    for part in pieces(count):
        values[part] = by_half[:, part].mean(axis=0)
    correlation = _correlation(r[:, 0], r[:, 1])
    low, high = fisher_interval(correlation, halves.shape[1])
    repeats = Repeatability(
        correlation=correlation,
        low=low,
        high=high,
        reliability=max(0.0, 2 * correlation / (1 + correlation)),
        foretold=float(np.mean(foretold)),
        target_rows=target_rows,
        rows_needed=_rows_needed(correlation, target_rows) if low > 0 else None,
    )
    return Shrunk(values, by_half, repeats)


def normal_scores(values: Array) -> Array:
    """Quantiles of the normal distribution in the order of the values, shape (n,), mean 0."""
    scores = average_ranks(values)
    for part in pieces(len(values)):
        scores[part] = QUANTILES((scores[part] + 0.5) / len(values))
    return scores


class _Columns:
    """Influences on both halves and the evidence, centered, the evidence of spread 1.

    triangle: R of their QR decomposition, shape (k, 2 + F), k at most 2 + F: all products of
    columns, and so all that least squares and correlations take.
    """

    def __init__(self, halves: Array, evidence: Array) -> None:
        self._halves, self._evidence, count = halves, evidence, halves.shape[1]
        width = 2 + len(evidence)
        self._means, squares = np.zeros((width, 1)), np.zeros((width, 1))
        self._spread = np.ones((width, 1))
        for part in pieces(count):
            self._means += self._raw(part).sum(axis=1, keepdims=True)
        self._means /= count
        for part in pieces(count):
            squares += np.square(self._raw(part) - self._means).sum(axis=1, keepdims=True)
        squares[:2] = count
        self._spread = np.where(squares > 0, np.sqrt(squares / count), 1.0)
        self.triangle = np.zeros((0, width))
        for part in pieces(count):
            rows = np.vstack([self.triangle, self._of(part).T])
            self.triangle = np.asarray(np.linalg.qr(rows, mode="r"))

    def combined(self, used: list[int], weights: Array) -> Array:
        """The sum of some columns, weighted, shape (N,)."""
        total = large(self._halves.shape[1], np.float64)
        for part in pieces(len(total)):
            total[part] = weights @ self._of(part)[used]
        return total

    def _raw(self, part: slice) -> Array:
        return np.vstack([self._halves[:, part], self._evidence[:, part]])

    def _of(self, part: slice) -> Array:
        columns: Array = (self._raw(part) - self._means) / self._spread
        return columns


def _rows_needed(correlation: float, target_rows: int) -> int:
    """The length at which a target's scores are reliable enough, by Spearman and Brown."""
    halves = ENOUGH / (1 - ENOUGH) * (1 - correlation) / correlation
    return math.ceil(halves * target_rows / 2)


def _correlation(one: Array, other: Array) -> float:
    """Pearson's for centered values, 0 where one of them never varies."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0


def _agreement(one: Array, other: Array) -> float:
    """`_correlation` of any number of values."""
    sums = np.zeros((2, 2))
    for part in pieces(len(one)):
        both = np.stack([one[part], other[part]])
        sums += both @ both.T
    size = math.sqrt(sums[0, 0] * sums[1, 1])
    return float(sums[0, 1]) / size if size > 0 else 0.0
