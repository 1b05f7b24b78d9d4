"""Do scores repeat on other target rows, and what should other evidence say beside them?

An influence on a target is a mean over the target's rows, and those are a sample. Choosing top
rows by it fits that sample. So candidates are scored against two disjoint halves of the target.
What the two share is not sampling noise (DESIGN 3.11). But influences of one step share more than
the row: they look back along the same updates, whose direction is partly chance. So the halves
are told apart by visits, too: influences on one half in a row's odd visits foretell those on the
other half in its even ones only by what is the row's own.

Beside influences there is other evidence of a row: its losses or margins in training on
everything, and how near it is to target rows of its label. How much weight each should have
differs: losses say nearly all of wrong labels, and nothing of domains. So it is tried out. A score
is

    (i + w l + v n) / sqrt(1 + w^2 + v^2),

with i, l and n the normal scores of the influence, of low losses or high margins, and of nearness.
The weights that are looked for are those by which the rows that would go first have the lowest
influence on what did not score them, the other half in other visits. Several do about as well: w
and v are those of the mean over all that are within a standard error of the best. Losses of texts
are high for rare ones, too, and low ones help for the next few steps only: there, more weight has
to be better by a lot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from curate.runtime.large import large, pieces
from curate.selection import Array
from curate.selection.ranking import SURE, correlation, fisher_interval, normal_scores

ENOUGH = 0.8
"""Reliability of scores that `rows_needed` is about."""
WEIGHTS, FIRST = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), 0.2
"""Of each kind of evidence, as tried; the least share of rows that are taken to go first."""
SAMPLE = 2**15
"""Rows that weights are found by, about, where there are more."""


class Halves(NamedTuple):
    """Influences on one half of the target and on the other, standardized step by step.

    means: over a row's visits, shape (2, N). visits: over its odd ones and over its even ones, half
    by visits, shape (2, 2, N), NaN where it had none.
    """

    means: Array
    visits: Array


@dataclass(frozen=True)
class Repeatability:
    """How far scores on one half of the target repeat on the other.

    correlation: of the candidates' influences on the two halves, with its 95 % interval, `low`
        to `high`. reliability: of influences on the whole target, by Spearman and Brown.
    foretold: correlation of final scores made from one half with influences on the other, mean
        of both directions. evidence: the weight of each kind of other evidence in these.
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
    evidence: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Combined:
    """Scores of influence and evidence, with mean 0, higher for better.

    values: shape (N,). by_half: made from the influences on one half alone, shape (2, N), so
    that the other half is free to judge by.
    """

    values: Array
    by_half: Array
    repeats: Repeatability


def combine(
    halves: Halves,
    target_rows: int,
    evidence: Mapping[str, Array] | None = None,
    unlike: float = 0.0,
    *,
    wary: bool = False,
) -> Combined:
    """Score every row by its influence and by what other evidence is worth beside it.

    Args:
        target_rows: of both halves together.
        evidence: about each row, by kind, finite, higher for better: shape (N,), or (2, N) by what
            one half of the target says and by what the other does.
        unlike: a guess at the share of rows that should go.
        wary: whether more weight of the evidence has to be better beyond chance.
    """
    means, count = halves.means, halves.means.shape[1]
    beside = {kind: _ranked(values) for kind, values in (evidence or {}).items()}
    found = _weights(halves.visits, [*beside.values()], max(FIRST, unlike), wary)
    by_half, values = large((2, count), np.float64), large(count, np.float64)
    for k in (0, 1):
        influence = normal_scores(means[k])
        for part in pieces(count):
            by_half[k, part] = _mixed(
                influence[part], [own[k, part] for own in beside.values()], found
            )
            by_half[k, part] /= math.hypot(1, *found)
            values[part] += by_half[k, part] / 2
    repeat = _or_zero(means[0], means[1])
    low, high = fisher_interval(repeat, count)
    repeats = Repeatability(
        correlation=repeat,
        low=low,
        high=high,
        reliability=max(0.0, 2 * repeat / (1 + repeat)),
        foretold=sum(_or_zero(by_half[k], means[1 - k]) for k in (0, 1)) / 2,
        target_rows=target_rows,
        rows_needed=_rows_needed(repeat, target_rows) if low > 0 else None,
        evidence=dict(zip(beside, found, strict=True)),
    )
    return Combined(values, by_half, repeats)


def _ranked(values: Array) -> Array:
    """Normal scores by either half, shape (2, N)."""
    if values.ndim == 1:
        return np.broadcast_to(normal_scores(values), (2, len(values)))
    ranked = large(values.shape, np.float64)
    for own, out in zip(values, ranked, strict=True):
        out[:] = normal_scores(own)
    return ranked


def _mixed(influence: Array, beside: Sequence[Array], weights: Sequence[float]) -> Array:
    """Influences and other evidence, all of shape (n,), added up by weight."""
    for own, weight in zip(beside, weights, strict=True):
        influence = influence + weight * own
    return influence


def _weights(visits: Array, beside: Sequence[Array], share: float, wary: bool) -> tuple[float, ...]:
    """Weights of the evidence: of the mean over those that are within a standard error of the best.

    Where most rows were seen once, influences of the same steps have to do.

    beside: each shape (2, N). share: of the rows, that would go first. wary: the least within two
    standard errors instead.
    """
    count = visits.shape[-1]
    every = max(1, count // SAMPLE)
    cells = _sampled(visits, every)
    once, again = ~np.isnan(cells[0])
    tried = sorted(product(WEIGHTS, repeat=len(beside)), key=lambda own: (sum(own), own[::-1]))
    if len(tried) == 1 or not once.any():
        return tried[0]
    apart = 2 * int(again.sum()) >= int(once.sum())
    known = again if apart else once
    cells, others = cells[:, :, known], [_sampled(own, every)[:, known] for own in beside]
    first = max(1, round(share * cells.shape[-1]))
    gains = np.zeros((len(tried), cells.shape[-1]))  # what every row adds to that of dropping
    for half, visit in product((0, 1), (0, 1) if apart else (0,)):
        other = cells[1 - half, 1 - visit if apart else visit]
        influence = normal_scores(cells[half, visit])
        for k, weights in enumerate(tried):
            mixed = _mixed(influence, [own[half] for own in others], weights)
            dropped = np.argsort(mixed, kind="stable")[:first]
            gains[k, dropped] += (other.mean() - other[dropped]) / first
    missed = gains[int(gains.sum(axis=1).argmax())] - gains
    chance = (SURE if wary else 1.0) * np.sqrt(np.square(missed).sum(axis=1))
    close = np.array([(1.0, *own) for own in tried])[missed.sum(axis=1) <= chance]
    if wary:
        return tuple(close[0, 1:].tolist())
    mean = (close / np.linalg.norm(close, axis=1, keepdims=True)).mean(axis=0)
    return tuple((mean[1:] / mean[0]).tolist())


def _sampled(values: Array, every: int) -> Array:
    """Every so manieth row of an array that may lie in a file, shape (..., N)."""
    parts = [values[..., part][..., ::every].copy() for part in pieces(values.shape[-1])]
    return np.concatenate(parts, axis=-1)


def _rows_needed(correlation: float, target_rows: int) -> int:
    """The length at which a target's scores are reliable enough, by Spearman and Brown."""
    halves = ENOUGH / (1 - ENOUGH) * (1 - correlation) / correlation
    return math.ceil(halves * target_rows / 2)


def _or_zero(one: Array, other: Array) -> float:
    """The correlation; 0 where one of them never varies."""
    found = correlation(one, other)
    return 0.0 if math.isnan(found) else found
