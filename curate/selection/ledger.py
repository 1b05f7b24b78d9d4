"""The ledger: what every candidate was worth, over all the steps it was offered in."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from curate.influence import WindowError
from curate.selection import Array
from curate.selection.budget import Choice
from curate.selection.scale import standardize


@dataclass
class Outcome:
    """What became of one window, in loss units; means over the targets.

    first_step: where it is in the run. steps: decided, K or fewer. candidates: scored in them;
    kept: of those. signal: their mean |influence|. target_loss: at its end, trained on
    everything. predicted: change of that from training on what was kept, first order in each
    step's mean gradient; None where a step kept nothing. realised: the change itself; None where
    it was not measured, see `Selector`.
    """

    first_step: int
    steps: int
    candidates: int
    kept: int
    signal: float
    target_loss: float
    predicted: float | None
    realised: float | None = None

    def metrics(self) -> dict[str, float | None]:
        """Its numbers by name for a tracker: what was kept as a share, `influence` the signal."""
        return {
            "target_loss": self.target_loss,
            "predicted": self.predicted,
            "realised": self.realised,
            "kept": self.kept / self.candidates,
            "influence": self.signal,
        }


@dataclass(frozen=True)
class Scores:
    """One row per candidate.

    score: what the budget ranks, shape (N,). seen: steps it was offered in, (N,).
    halves: influences on one half of the target and on the other, standardized step by step as
    the score is, (2, N); None if the target was not halved.
    influence: mean over occurrences, on the mean loss of the targets, loss units, (N,);
    influences: the same on each target, (Q, N); None if the policy does not look at influences.
    errors: expected absolute error of the mean influence, (N,); windows: what each
    window's were worth. Where they were asked for. outcomes: what became of each window,
    where there are influences.
    """

    score: Array
    seen: Array
    influence: Array | None = None
    influences: Array | None = None
    halves: Array | None = None
    errors: Array | None = None
    windows: Sequence[WindowError] = ()
    outcomes: Sequence[Outcome] = ()

    def window_rows(self) -> list[dict[str, Any]]:
        """Plain values of every window: what became of it, and what its scores were worth."""
        worth = {window.first_step: window.row() for window in self.windows}
        return [asdict(own) | worth.get(own.first_step, {}) for own in self.outcomes]


class Ledger:
    """Adds up values and influences, step by step. Memory: O(N Q)."""

    def __init__(
        self,
        candidates: int,
        target_weights: Array,
        strata: Array | None = None,
        halves: Array | None = None,
    ) -> None:
        """target_weights: in the mean over the targets, shape (Q,). strata: (N,), or None.

        halves: if the first Q / 2 targets are one half of them and the others the other half,
        the share of each of the whole, shape (2, Q / 2).
        """
        self._weights, self._strata = target_weights, strata
        self._shares = halves
        self._halves = np.zeros((0 if halves is None else 2, candidates))
        self._score = np.zeros(candidates)
        self._seen = np.zeros(candidates, dtype=np.int64)
        self._influences = np.zeros((len(target_weights), candidates))

    def add(
        self, rows: Array, scores: Array, influences: Array | None = None, per: Array | int = 1
    ) -> None:
        """Enter one step: standardized values, shape (n,), and influences, shape (Q, n).

        per: what influences on halves of the target are divided by first, such as tokens, (n,).
        """
        strata = None if self._strata is None else self._strata[rows]
        np.add.at(self._score, rows, scores)
        np.add.at(self._seen, rows, 1)
        if influences is not None:
            for total, found in zip(self._influences, influences, strict=True):
                np.add.at(total, rows, found)
            for k, total in enumerate(self._halves):
                own = slice(k * len(influences) // 2, (k + 1) * len(influences) // 2)
                half = np.average(influences[own], axis=0, weights=self._weights[own])
                np.add.at(total, rows, standardize(half / per, strata))

    def saved(self) -> dict[str, Array]:
        """The sums so far, as they are until the next step is entered."""
        return {
            "score": self._score,
            "seen": self._seen,
            "influences": self._influences,
            "halves": self._halves,
        }

    def restore(self, saved: dict[str, Array]) -> None:
        """Go on from sums that were `saved`."""
        self._score, self._seen = saved["score"], saved["seen"]
        self._influences, self._halves = saved["influences"], saved["halves"]

    def scores(self, *, with_influences: bool) -> Scores:
        """Means over occurrences; a candidate never offered scores 0."""
        times = np.maximum(self._seen, 1)
        scores = Scores(self._score / times, self._seen)
        if not with_influences:
            return scores
        influences = self._influences / times
        influence = np.average(influences, axis=0, weights=self._weights)
        halves = None
        if self._shares is not None:
            halves = self._halves / times
            each = influences.reshape(2, len(influences) // 2, -1)
            influences = (self._shares[..., None] * each).sum(axis=0)
        return replace(scores, influence=influence, influences=influences, halves=halves)


def score_table(
    scores: Scores, choice: Choice, rows: Array, targets: list[str], tokens: Array | None = None
) -> pl.DataFrame:
    """`scores.parquet`: one row per candidate, in the order of the source.

    rows: positions in the source, shape (N,), ascending. tokens: of every candidate, (N,), if
    they are counted.
    """
    influences = scores.influences
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.argsort(-scores.score, kind="stable")] = np.arange(1, len(rows) + 1)
    columns: dict[str, Any] = {
        "row": rows,
        "influence": pl.Series([None] * len(rows), dtype=pl.Float64)
        if scores.influence is None
        else scores.influence,
        "score": scores.score,
        "rank": rank,
        "kept": choice.kept,
        "reason": choice.reasons,
        "seen": scores.seen,
    }
    if tokens is not None:
        columns["tokens"] = tokens
    if scores.errors is not None:
        columns["error"] = scores.errors
    if influences is not None and len(targets) > 1:
        columns |= {
            f"influence/{name}": part for name, part in zip(targets, influences, strict=True)
        }
    return pl.DataFrame(columns)
