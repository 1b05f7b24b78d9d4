"""The ledger: what every candidate was worth, over all the steps it was offered in."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from curate.influence import WindowError
from curate.runtime.large import add_to_rows, filled, large, pieces
from curate.runtime.records import Records
from curate.selection import Array
from curate.selection.budget import Choice
from curate.selection.effort import Effort
from curate.selection.policies import Halves
from curate.selection.ranking import descending_ranks
from curate.selection.scale import standardize

_KINDS: dict[Any, Any] = {
    int: pl.Int64,
    float: pl.Float64,
    float | None: pl.Float64,
    Effort: pl.String,
}
"""Of the columns of a table of windows, by the types of what they hold."""


@dataclass
class Outcome:
    """What became of one window, in loss units; means over the targets.

    first_step: its place in the run. steps: decided, K or fewer. candidates: scored in them.
    kept: of those. signal: mean |influence|. target_loss: at the window's end, trained on
    everything; None where a shortcut did not go there. predicted: change of that loss from training
    on what was kept, first order in each step's mean gradient; None where a step kept nothing.
    realized: the change itself; None where it was not measured, see `Selector`.
    effort: that was taken to decide. alike: the share of rows that less of it decides likewise,
    in steps where that was checked.
    """

    first_step: int
    steps: int
    candidates: int
    kept: int
    signal: float
    target_loss: float | None
    predicted: float | None
    realized: float | None = None
    effort: Effort = "exact"
    alike: float | None = None

    def metrics(self) -> dict[str, float | None]:
        """The numbers that trackers receive: `kept` as a share, `influence` the signal."""
        return {
            "target_loss": self.target_loss,
            "predicted": self.predicted,
            "realized": self.realized,
            "kept": self.kept / self.candidates,
            "influence": self.signal,
            "alike": self.alike,
        }


@dataclass(frozen=True)
class Scores:
    """One row per candidate.

    score: what the budget ranks, shape (N,). seen: steps it was offered in, (N,).
    influence: mean over occurrences, on the mean loss of the targets, loss units, (N,);
    influences: on each target, (Q, N); None if the policy does not look at influences.
    halves: influences on halves of the target; None if it was not halved.
    errors: expected absolute error of the mean influence, (N,), and windows: how far each
    window's influences are off; both only where errors were estimated. outcomes: what became of
    each window, where there are influences.
    """

    score: Array
    seen: Array
    influence: Array | None = None
    influences: Array | None = None
    halves: Halves | None = None
    errors: Array | None = None
    windows: Sequence[WindowError] = ()
    outcomes: Sequence[Outcome] = ()

    def window_table(self) -> pl.DataFrame:
        """A line for every window: what became of it, and its errors if estimated."""
        outcomes = _table(self.outcomes, Outcome)
        if not len(self.windows):
            return outcomes
        errors = _table(self.windows, WindowError)
        lacking = [c for c in errors.columns if c not in outcomes.columns or c == "target_loss"]
        if not outcomes["first_step"].equals(errors["first_step"]):
            errors = outcomes.select("first_step").join(errors, on="first_step", how="left")
        return outcomes.with_columns(errors.select(lacking))


def _table(records: Sequence[Any], kind: type) -> pl.DataFrame:
    held = records if isinstance(records, Records) else Records(kind, records)
    return pl.DataFrame(held.columns(), {f.name: _KINDS[f.type] for f in fields(kind)})


def ledger_columns(targets: int, *, halved: bool) -> int:
    """Numbers that a ledger has of every candidate.

    Score, visits, an influence per target; odd visits, and each half in odd and in even ones.
    """
    return 2 + targets + (5 if halved else 0)


class Ledger:
    """Adds up values and influences, step by step.

    8 bytes for each of `ledger_columns` a candidate: in memory where that is little, in a file
    without a name otherwise.
    """

    def __init__(
        self,
        candidates: int,
        target_weights: Array,
        strata: Array | None = None,
        half_shares: Array | None = None,
    ) -> None:
        """target_weights: in the mean over the targets, shape (Q,). strata: (N,), or None.

        half_shares: if the first Q / 2 targets are halves of targets and the others the other
        halves, the share of each in its whole target, shape (2, Q / 2).
        """
        self._weights, self._strata, self._half_shares = target_weights, strata, half_shares
        width = ledger_columns(len(target_weights), halved=half_shares is not None)
        self._sums = large((candidates, width), np.float64)

    def add(
        self, rows: Array, scores: Array, influences: Array | None = None, per: Array | int = 1
    ) -> None:
        """Enter one step: standardized values, shape (n,), and influences, shape (Q, n).

        per: what influences on halves of the target are divided by first, such as tokens, (n,).
        """
        columns = [scores, np.ones(len(rows))]
        if influences is not None:
            columns += [*influences]
            if self._half_shares is not None:
                columns += self._by_visit(rows, influences / per)
        add_to_rows(self._sums, rows, columns)

    def _by_visit(self, rows: Array, influences: Array) -> list[Array]:
        """Columns of one step: whether it is a row's odd visit; each half in odd, even visits."""
        strata = None if self._strata is None else self._strata[rows]
        odd = self._sums[rows, 1] % 2 == 0
        columns = [odd.astype(np.float64)]
        for k in (0, 1):
            half = slice(k * len(influences) // 2, (k + 1) * len(influences) // 2)
            mean = np.average(influences[half], axis=0, weights=self._weights[half])
            values = standardize(mean, strata)
            columns += [values * odd, values * ~odd]
        return columns

    def saved(self) -> Array:
        """The sums so far, valid until the next step is entered."""
        return self._sums

    def restore(self, saved: Array) -> None:
        """Continue from sums that were `saved`."""
        self._sums = filled(saved)

    def scores(self, *, with_influences: bool) -> Scores:
        """Means over occurrences; a candidate never offered scores 0."""
        count = len(self._sums)
        scores = Scores(large(count, np.float64), large(count, np.int64))
        if with_influences:
            halved = self._half_shares is not None
            targets = len(self._weights) // (2 if halved else 1)
            scores = replace(
                scores,
                influence=large(count, np.float64),
                influences=large((targets, count), np.float64),
                halves=_halves(count) if halved else None,
            )
        for part in pieces(count):
            self._enter_means(scores, part)
        return scores

    def _enter_means(self, scores: Scores, part: slice) -> None:
        """Put the means of some candidates into the arrays of all."""
        targets, (score, seen, *others) = len(self._weights), self._sums[part].T.copy()
        scores.seen[part], times = seen, np.maximum(seen, 1)
        scores.score[part] = score / times
        if scores.influence is None or scores.influences is None:
            return
        influences = np.stack(others[:targets]) / times
        scores.influence[part] = np.average(influences, axis=0, weights=self._weights)
        if self._half_shares is not None and scores.halves is not None:
            odd, *visits = others[targets:]
            sums = np.stack(visits).reshape(2, 2, -1)
            scores.halves.means[:, part] = sums.sum(axis=1) / times
            counts = np.stack([odd, seen - odd])
            by_visit = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
            scores.halves.visits[..., part] = by_visit
            by_half = influences.reshape(2, len(influences) // 2, -1)
            influences = (self._half_shares[..., None] * by_half).sum(axis=0)
        scores.influences[:, part] = influences


def _halves(count: int) -> Halves:
    return Halves(large((2, count), np.float64), large((2, 2, count), np.float64))


def score_table(
    scores: Scores, choice: Choice, rows: Array, targets: list[str], tokens: Array | None = None
) -> pl.DataFrame:
    """`scores.parquet`: one row per candidate, in the order of the source.

    It shares the memory of the arrays that it is made of.

    rows: positions in the source, shape (N,), ascending. tokens: of every candidate, (N,), if
    they are counted.
    """
    influence = scores.influence
    columns: dict[str, Any] = {
        "row": rows,
        "influence": pa.nulls(len(rows), pa.float64()) if influence is None else influence,
        "score": scores.score,
        "rank": descending_ranks(scores.score),
        "kept": choice.kept,
        "reason": pa.DictionaryArray.from_arrays(choice.codes, choice.words),
        "seen": scores.seen,
    }
    if tokens is not None:
        columns["tokens"] = tokens
    if scores.errors is not None:
        columns["error"] = scores.errors
    if scores.influences is not None and len(targets) > 1:
        names = (f"influence/{name}" for name in targets)
        columns |= dict(zip(names, scores.influences, strict=True))
    return pl.DataFrame(pl.from_arrow(pa.table(columns)))
