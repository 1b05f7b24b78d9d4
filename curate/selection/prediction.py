"""Learn scores from cheap features of some rows, to predict those of others, with an interval."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from curate.selection import Array
from curate.selection.ranking import descending_ranks, fisher_interval, rank_correlation

FOLDS, COVERED = 5, 0.9
"""Parts of the sample, each kept back once; the share of rows whose score is in its interval."""
PENALTIES = np.logspace(-4, 5, 28)
"""Ridge penalties that are tried, per row and for features of variance 1."""
FREE = 0.1
"""The least share of a sample's degrees of freedom that a regression leaves."""
SEED, AT_A_TIME = 4, 4096


@dataclass(frozen=True)
class Stage:
    """A ridge regression on one block of features: (x - shift) @ weights, each of shape (F,)."""

    shift: Array
    weights: Array

    def __call__(self, block: Array, rows: Array | None = None) -> Array:
        """What it adds to the prediction for a block of shape (n, F), or some of its rows, (n,)."""
        weights = torch.from_numpy(self.weights)  # torch keeps to the threads of the run
        parts = [torch.from_numpy(part - self.shift) @ weights for part in _parts(block, rows)]
        added: Array = torch.cat(parts).numpy()
        return added


@dataclass(frozen=True)
class Quality:
    """How well scores of rows kept back are predicted.

    sample: rows. spearman: rank correlation of predicted and exact scores; low, high: its 95 %
    interval over rows. share: of the rows that are kept, and alike: the share of all rows that
    both keep or both drop, which chance makes `by_chance`. width: half of the interval of a score,
    which holds `COVERED` of them.
    """

    sample: int
    spearman: float
    low: float
    high: float
    share: float
    alike: float
    width: float

    @property
    def by_chance(self) -> float:
        """The share of rows that a choice at random makes alike."""
        return self.share**2 + (1 - self.share) ** 2

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"by_chance": self.by_chance}


@dataclass(frozen=True)
class Predictor:
    """Scores from blocks of features: each block explains what those before it leave.

    Influence is linear in a row's gradient, so that ridge regressions do; blocks go from few
    features, which take few rows to learn, to many. base: the mean score. width: see `Quality`.
    """

    base: float
    stages: tuple[Stage, ...]
    width: float

    def __call__(self, blocks: Sequence[Array]) -> Array:
        """Scores of rows with these features, each of shape (n, F), shape (n,)."""
        parts = [stage(block) for stage, block in zip(self.stages, blocks, strict=True)]
        scores: Array = np.sum(parts, axis=0) + self.base
        return scores

    def saved(self) -> dict[str, Any]:
        """Plain values and arrays."""
        return {"base": self.base, "width": self.width, "stages": [vars(s) for s in self.stages]}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "Predictor":
        """The object that was `saved`."""
        stages = tuple(Stage(**stage) for stage in saved["stages"])
        return cls(saved["base"], stages, saved["width"])


def learn(blocks: Sequence[Array], scores: Array, share: float) -> tuple[Predictor, Quality]:
    """Learn scores, shape (n,), from blocks of features, each (n, F), and measure how well.

    Every row is kept back once, and predicted by what was learned from the others. The interval
    is conformal: a quantile of how far these predictions are off, so it holds for rows that are
    drawn as the sample was. Time: O(n F^2). Memory: that of the blocks, and O(F^2).

    share: of the rows that will be kept.
    """
    count = len(scores)
    fold = np.random.default_rng(SEED).permutation(count) % FOLDS
    kept_back = np.empty(count)
    for k in range(FOLDS):
        others, own = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        kept_back[own] = _fit(blocks, scores, others)([block[own] for block in blocks])
    level = min(1.0, COVERED * (count + 1) / count)
    width = float(np.quantile(np.abs(scores - kept_back), level, method="higher"))
    correlation = rank_correlation(kept_back, scores) if np.ptp(kept_back) > 0 else 0.0
    low, high = fisher_interval(correlation, count)
    quality = Quality(
        sample=count,
        spearman=correlation,
        low=low,
        high=high,
        share=share,
        alike=float(np.mean(_best(kept_back, share) == _best(scores, share))),
        width=width,
    )
    return replace(_fit(blocks, scores, np.arange(count)), width=width), quality


def _fit(blocks: Sequence[Array], scores: Array, rows: Array) -> Predictor:
    base = float(scores[rows].mean())
    left, stages = scores[rows] - base, list[Stage]()
    for block in blocks:
        stages.append(_ridge(block, rows, left, apart=not stages))
        left = left - stages[-1](block, rows)
    return Predictor(base, tuple(stages), 0.0)


def _ridge(block: Array, rows: Array, values: Array, *, apart: bool) -> Stage:
    """The regression of values, shape (n,), of mean 0, on rows of a block.

    The penalty is that of the least error by generalized cross-validation (Golub, Heath, Wahba).

    apart: whether every feature has a scale of its own; one for all where their sizes say which
    matter.
    """
    count, width = len(rows), block.shape[1]
    shift = np.sum([part.sum(axis=0) for part in _parts(block, rows)], axis=0) / count
    gram, along, place = torch.zeros(width, width, dtype=torch.float64), np.zeros(width), 0
    for part in _parts(block, rows):
        centered = torch.from_numpy(part - shift)
        gram += centered.T @ centered
        along += centered.T.numpy() @ values[place : place + len(part)]
        place += len(part)
    variance = gram.diagonal().numpy() / count
    scale = np.sqrt(variance if apart else np.full(width, variance.mean()))
    factor = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    both = torch.linalg.eigh(gram * torch.from_numpy(factor * factor[:, None]))
    sizes, axes = np.maximum(both[0].numpy(), 0), both[1].numpy()
    turned = axes.T @ (factor * along)
    fits = [turned / (sizes + penalty * count) for penalty in PENALTIES]
    free = count - 1 - np.array([(sizes / (sizes + p * count)).sum() for p in PENALTIES])
    errors = [values @ values - 2 * fit @ turned + fit @ (sizes * fit) for fit in fits]
    by_freedom = np.where(free > FREE * count, errors / free**2, np.inf)
    return Stage(shift, factor * (axes @ fits[int(np.argmin(by_freedom))]))


def _parts(block: Array, rows: Array | None = None) -> Iterator[Array]:
    """Rows of a block, all if None, some at a time in double precision."""
    count = len(block) if rows is None else len(rows)
    for first in range(0, count, AT_A_TIME):
        some = slice(first, first + AT_A_TIME)
        yield np.asarray(block[some if rows is None else rows[some]], dtype=np.float64)


def _best(scores: Array, share: float) -> Array:
    """The share of rows with the highest scores, shape (n,), bool."""
    best: Array = descending_ranks(scores) <= round(share * len(scores))
    return best
