"""How well predicted changes agree with actual ones, with an error bar."""

from dataclasses import asdict, dataclass
from math import nan
from typing import Any

import numpy as np

from curate.output.verdict import agreement_verdict
from curate.selection import Array
from curate.selection.ranking import correlation, rank_correlation

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % percentile bootstrap interval around it; NaN if undefined."""

    value: float = nan
    low: float = nan
    high: float = nan

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Agreement:
    """How well predicted changes of the loss agree with actual ones, for n examples left out.

    spearman, pearson: correlations. slope: of actual over predicted, through the
    origin: 1 where sizes are right, below 1 where predictions are too large.
    relative_error: median of |predicted - actual| / |actual|. error: mean of
    |predicted - actual|, signal: mean of |actual|, in loss units.
    """

    examples: int
    spearman: Interval
    pearson: Interval
    slope: float
    relative_error: float
    error: float
    signal: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values; None for what is undefined."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def verdict(self) -> str:
        """What scores with such an agreement are good for, in words."""
        return agreement_verdict(self.examples, self.spearman.low, self.slope)


def agree(predicted: Array, actual: Array, seed: int = 0) -> Agreement:
    """Compare changes of the loss, each of shape (n,); pairs that are not finite are left aside.

    Intervals resample examples with replacement, `RESAMPLES` times.
    """
    finite = np.isfinite(predicted) & np.isfinite(actual)
    predicted, actual = predicted[finite], actual[finite]
    random = np.random.default_rng(seed)
    count = len(predicted)
    if count < 2:
        return Agreement(count, Interval(), Interval(), nan, nan, nan, nan)
    spearman, pearson = [], []
    for _ in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        spearman.append(rank_correlation(predicted[drawn], actual[drawn]))
        pearson.append(correlation(predicted[drawn], actual[drawn]))
    square = float(predicted @ predicted)
    off = np.abs(predicted - actual)
    relative = np.divide(off, np.abs(actual), out=np.where(off > 0, np.inf, 0.0), where=actual != 0)
    return Agreement(
        examples=count,
        spearman=_interval(rank_correlation(predicted, actual), spearman),
        pearson=_interval(correlation(predicted, actual), pearson),
        slope=float(predicted @ actual) / square if square else nan,
        relative_error=float(np.median(relative)),
        error=float(off.mean()),
        signal=float(np.abs(actual).mean()),
    )


def _interval(value: float, resampled: list[float]) -> Interval:
    finite = [x for x in resampled if np.isfinite(x)]
    if not finite or not np.isfinite(value):
        return Interval(value)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
