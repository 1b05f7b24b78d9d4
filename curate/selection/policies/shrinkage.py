"""Do scores repeat on other target rows, and what is the best guess at what they would be there?

An influence on a target is a mean over the target's rows, and those are a sample. Choosing top
rows by it fits that sample. So candidates are scored against two disjoint halves of the target,
A and B. What the two share is not sampling noise (DESIGN 3.11), and each half says how much of
the other's can be foretold:

    B_i  ~  b_0 A_i + b_1 f_i1 + b_2 f_i2 + ...                     (least squares over all rows i)

with f whatever else is known of a row, such as its losses in training on everything.
The errors of A and B are independent, since no target row is in both, so that the fitted values
are the best linear guess at influences on target rows *not seen*: scores that are mostly noise
get little weight, and evidence gets as much as it is worth on this data, none if none.
This is the regression form of empirical Bayes (Fay and Herriot 1979), fitted by cross-halves.

What repeats is not all worth choosing by: influences early in a run share what is common to large
rows. So the evidence gets a say of its own, by as much as it agrees with the influences.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from curate.selection import Array
from curate.selection.ranking import average_ranks

ENOUGH = 0.8
"""Reliability of scores that `rows_needed` is about."""
SURE = 1.96
"""Standard errors on either side of a correlation's interval, by Fisher's transform."""


@dataclass(frozen=True)
class Repeatability:
    """How far scores on one half of the target repeat on the other.

    correlation: of the candidates' influences on the two halves, with its 95 % interval, `low`
        to `high`. reliability: of those on the whole target, by Spearman and Brown.
    foretold: correlation of the final scores, as made from one half, with influences on the
        other, mean of both ways.
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
    """Scores that were shrunk to what repeats; normal, with mean 0, higher for better.

    values: shape (N,). by_half: made from the influences on one half alone, shape (2, N): the
    other half is then free to judge by.
    """

    values: Array
    by_half: Array
    repeats: Repeatability


def shrink(halves: Array, evidence: Array, target_rows: int) -> Shrunk:
    """How every row compares in what its influence on unseen target rows is likely to be.

    That is the normal score of the fitted value, plus rho times that of the first evidence, rho
    being the correlation of normal scores of evidence and influence, where it is above 0.

    Args:
        halves: influences on the two halves of the target, shape (2, N).
        evidence: what else is known of each row, shape (F, N), finite, higher for better; F may
            be 0.
        target_rows: of both halves together.
    """
    by_half, foretold = np.empty_like(halves), []
    centered = halves - halves.mean(axis=1, keepdims=True)
    known = evidence - evidence.mean(axis=1, keepdims=True)
    spread = known.std(axis=1, keepdims=True)
    known = known / np.where(spread > 0, spread, 1.0)
    alone = normal_scores(evidence[0]) if len(evidence) else np.zeros(halves.shape[1])
    for own, other in ((0, 1), (1, 0)):
        columns = np.vstack([centered[own], known]).T
        weights = np.linalg.lstsq(columns, centered[other], rcond=None)[0]
        if weights[0] < 0:  # by chance: influences do not mean their opposite
            weights = np.append(0.0, np.linalg.lstsq(known.T, centered[other], rcond=None)[0])
        fitted = columns @ weights
        foretold.append(_correlation(fitted, centered[other]))
        by_half[own] = normal_scores(fitted if fitted.any() else centered[own])
        agreement = _correlation(alone, normal_scores(centered[own]))
        by_half[own] += max(0.0, agreement) * alone
    correlation = _correlation(centered[0], centered[1])
    low, high = _interval(correlation, halves.shape[1])
    return Shrunk(
        by_half.mean(axis=0),
        by_half,
        Repeatability(
            correlation=correlation,
            low=low,
            high=high,
            reliability=max(0.0, 2 * correlation / (1 + correlation)),
            foretold=float(np.mean(foretold)),
            target_rows=target_rows,
            rows_needed=_rows_needed(correlation, target_rows) if low > 0 else None,
        ),
    )


def normal_scores(values: Array) -> Array:
    """Quantiles of the normal distribution in the order of the values, shape (n,), mean 0."""
    places = (average_ranks(values) + 0.5) / len(values)
    found: Array = np.vectorize(NormalDist().inv_cdf, otypes=[float])(places)
    return found


def _rows_needed(correlation: float, target_rows: int) -> int:
    """By Spearman and Brown: the length at which a target's scores are reliable enough."""
    halves = ENOUGH / (1 - ENOUGH) * (1 - correlation) / correlation
    return math.ceil(halves * target_rows / 2)


def _correlation(one: Array, other: Array) -> float:
    """Pearson's, 0 where one of them never varies."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0


def _interval(correlation: float, count: int) -> tuple[float, float]:
    """Of 95 %, by Fisher's transform; -1 to 1 for fewer than four rows."""
    if count < 4:
        return -1.0, 1.0
    center = math.atanh(min(max(correlation, -1 + 1e-12), 1 - 1e-12))
    reach = SURE / math.sqrt(count - 3)
    return math.tanh(center - reach), math.tanh(center + reach)
