"""A dataset from an audit log, so that selection in a loop ends in something to train on."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from datasets import Dataset

from curate.datasets import fingerprint_of, read
from curate.errors import DataError, OptionError
from curate.integrations.fingerprint import require_same
from curate.output.audit_log import about, read_log
from curate.output.composition import Judged, composition
from curate.output.directory import Selection, made_with, write_selection
from curate.output.page import leave_report
from curate.runtime.parts import Parts, error_of
from curate.runtime.resume import check_free, staged
from curate.selection.budget import Budget, Choice
from curate.selection.ledger import Ledger, Scores, score_table
from curate.selection.scale import standardize


def write_kept(
    log: str | PathLike[str],
    data: Dataset | str | PathLike[str],
    out: str | PathLike[str],
    *,
    keep: float | None = None,
    overwrite: bool = False,
) -> pl.DataFrame:
    """Write what look-ahead kept in a training loop as a dataset directory, like `curate select`.

    A row's score is its value, standardized within the batch, averaged over the steps it was
    offered in; `influence` is averaged likewise. Rows that were never offered are not kept.

    Args:
        log: the loop's audit log, with the rows' positions in `data` as `row`.
        data: the dataset that `row` gives positions in, or where it is, as for `data.train` of a
            recipe. Where the loop read a `datasets.Dataset` with `row` a column of it, up to 64 of
            its rows are in the log, and every column of `data` that it had is compared; otherwise
            nothing is known but that no row lies outside. The provenance says which, and has the
            fingerprint of `data`.
        out: the directory.
        keep: share of the rows offered, the highest scores; None for the rows that the loop kept
            at least every other time.
        overwrite: replace `out` if curate wrote it.

    Returns:
        The table in `scores.parquet`: one line per row of `data`.

    Raises:
        UserError: the log has no row ids, or is about another dataset than `data`; nothing is
            written.
        RunError: the report or another part failed, after the rows and scores were written.
    """
    if keep is not None and not 0 < keep <= 1:
        raise OptionError(f"keep must be above 0 and at most 1 but got {keep}.")
    out = Path(out)
    check_free(out, overwrite=overwrite)
    table = data if isinstance(data, Dataset) else read(str(data))
    entries = read_log(log)
    _check_rows(entries, len(table), log)
    compared = sorted({name for facts in about(log) for name in require_same(facts, table, log)})
    targets = [c.removeprefix("influence/") for c in entries.columns if c.startswith("influence/")]
    scores = _scores(entries, len(table), targets)
    choice = _choice(entries, scores, keep)
    rows = score_table(scores, choice, np.arange(len(table)), targets)
    name = "a dataset in memory" if isinstance(data, Dataset) else str(data)
    provenance = made_with() | {
        "log": str(log),
        "keep": keep,
        "sources": {name: fingerprint_of(table)},
        "dataset_check": f"same in {', '.join(compared)}" if compared else "row ids only",
        "composition": composition(table, Judged(choice.kept, scores.influence, scores.seen), None),
    }
    with staged(out, overwrite=overwrite) as stage:
        write_selection(stage, Selection(table, rows, provenance=provenance))
    parts = Parts()
    leave_report(out, table, parts)
    if (error := error_of(parts.outcome(), out)) is not None:
        raise error from parts.cause
    return rows


def _check_rows(entries: pl.DataFrame, count: int, log: Any) -> None:
    if entries["row"].null_count():
        raise DataError(
            f"{log}: {entries['row'].null_count()} of {len(entries)} entries have no row id; "
            "give the loader `row`, the key of each batch that holds its positions in the dataset."
        )
    bad = entries.filter((pl.col("row") < 0) | (pl.col("row") >= count))
    if len(bad):
        raise DataError(f"{log}: has row {bad['row'][0]}, but the dataset has {count} rows.")


def _scores(entries: pl.DataFrame, count: int, targets: list[str]) -> Scores:
    columns = [f"influence/{name}" for name in targets] or ["influence"]
    ledger = Ledger(count, np.ones(len(columns)))
    for _, step in entries.group_by("run", "step", "batch", maintain_order=True):
        scores = standardize(step["value"].to_numpy())
        ledger.add(step["row"].to_numpy(), scores, step.select(columns).to_numpy().T)
    return ledger.scores(with_influences=True)


def _choice(entries: pl.DataFrame, scores: Scores, keep: float | None) -> Choice:
    offered = np.flatnonzero(scores.seen)
    kept = np.zeros(len(scores.seen), dtype=bool)
    reasons = np.full(len(kept), "never offered", dtype=object)
    if keep is not None:
        choice = Budget(fraction=keep).choose(scores.score[offered])
        kept[offered], reasons[offered] = choice.kept, choice.reasons
        return Choice.of(kept, reasons.tolist())
    times = np.zeros(len(kept), dtype=np.int64)
    np.add.at(times, entries["row"].to_numpy(), entries["kept"].to_numpy())
    kept[offered] = (2 * times >= scores.seen)[offered]
    pairs = zip(times[offered], scores.seen[offered], strict=True)
    reasons[offered] = [f"kept {n} of {seen} times" for n, seen in pairs]
    return Choice.of(kept, reasons.tolist())
