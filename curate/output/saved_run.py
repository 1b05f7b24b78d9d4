"""A finished run, read back from its directory alone. Loads no torch."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import embed_table_storage
from pydantic import BaseModel, ConfigDict, ValidationError

from curate.errors import OutputError
from curate.output.rows import Looks
from curate.recipe import Recipe, load_recipe

DROPPED = "dropped.parquet"
LISTED = 1500
"""Rows in the report's table, and dropped rows that are stored."""
STORED_BYTES = 2**25
AT_A_TIME = 256
COLUMNS = {
    "row": pl.Int64, "influence": pl.Float64, "score": pl.Float64, "rank": pl.Int64,
    "kept": pl.Boolean, "reason": pl.String, "seen": pl.Int64,
}  # fmt: skip


class Metric(BaseModel):
    """A metric of retrained models, one value per seed."""

    mean: float
    std: float
    values: list[float]


class Retrained(BaseModel):
    """One way of choosing, retrained from scratch; its metrics by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Metric]

    trained_on: str
    rows: int
    tokens: int | None = None
    noise_left: float | None = None

    @property
    def metrics(self) -> dict[str, Metric]:
        """The loss first."""
        return self.__pydantic_extra__


class ExpectedError(BaseModel):
    """Of the influences of a run, in loss units, see `ErrorProxy`."""

    probes: int
    signal: float
    error: float
    jump: float
    propagation: float
    derivative: float = 0.0


class Way(BaseModel):
    """One way to train, beside training on everything, see `Compared`."""

    name: str
    rows: int
    share: float | None
    loss: float
    last: float
    metrics: dict[str, float]
    gain: float
    error: float
    judging: int
    low: float
    high: float


class WorthOf(BaseModel):
    """What choosing is worth, see `Worth`."""

    answer: Literal["pays", "does not pay", "cannot tell"]
    share: float | None
    chosen: Way
    tried: list[Way]
    against: list[Way]
    judging: int
    target_rows: int
    steps: int
    limit: int


class Repeats(BaseModel):
    """How far scores repeat from one half of the target to the other, see `Repeatability`."""

    correlation: float
    low: float
    high: float
    reliability: float
    foretold: float
    target_rows: int
    rows_needed: int | None


class Noise(BaseModel):
    """Labels that were made wrong on purpose."""

    planted: int
    kept: int
    auroc: float


class Tokens(BaseModel):
    """Tokens that losses are sums over."""

    candidates: int
    kept: int


class Part(BaseModel):
    """The rows with one value of a column, or a text length."""

    value: str
    candidates: int
    kept: int


class Provenance(BaseModel):
    """What of provenance.json is shown."""

    policy: str = "look_ahead, in a training loop"
    steps: int | None = None
    device: str | None = None
    seconds: dict[str, float] = {}
    sources: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    truncated: dict[str, int] = {}
    left_out: dict[str, int] = {}
    tokens: Tokens | None = None
    error: ExpectedError | None = None
    worth: WorthOf | None = None
    cost: float | None = None
    repeats: Repeats | None = None
    noise: Noise | None = None
    evaluation: list[Retrained] = []
    composition: dict[str, list[Part]] = {}


class Verification(BaseModel):
    """What of verify.json is shown."""

    examples: int
    verdict: str


@dataclass(frozen=True)
class Run:
    """A directory that `curate select` wrote.

    scores: a line per candidate, best first. windows: a line per window; empty if there are
    none. kept: the rows of train/, in the source's order. dropped: the dropped rows that are
    stored, see `store_dropped`; dropped_rows: their positions in the source. Both give Arrow.
    """

    folder: Path
    scores: pl.DataFrame
    windows: pl.DataFrame
    provenance: Provenance
    recipe: Recipe | None
    verification: Verification | None
    kept: Dataset
    dropped: Dataset | None
    dropped_rows: list[int]

    @cached_property
    def places(self) -> dict[int, tuple[Dataset, int]]:
        """Where the content of a row is, for those that have it here."""
        kept = self.scores.filter("kept").sort("row")["row"].to_list()
        found = {row: (self.kept, place) for place, row in enumerate(kept)}
        if self.dropped is not None:
            dropped = self.dropped
            found |= {row: (dropped, place) for place, row in enumerate(self.dropped_rows)}
        return found

    @cached_property
    def looks(self) -> Looks:
        """How its rows are shown."""
        return Looks(self.kept.features, self.recipe)

    def contents(self, rows: Sequence[int]) -> Iterator[dict[str, Any] | None]:
        """The columns of rows by their positions in the source; None for one that is not stored.

        As they are stored: images are not decoded.

        Raises:
            OutputError: one is stored, but cannot be read.
        """
        for first in range(0, len(rows), AT_A_TIME):
            some, found = rows[first : first + AT_A_TIME], dict[int, dict[str, Any]]()
            for table in (self.kept, self.dropped):
                own = [row for row in some if row in self.places and self.places[row][0] is table]
                if table is None or not own:
                    continue
                try:
                    part = table[[self.places[row][1] for row in own]]
                    found |= dict(zip(own, part.to_pylist(), strict=True))
                except (OSError, ValueError, pa.ArrowException) as error:
                    where = f"{self.folder}: rows {own[0]} to {own[-1]}"
                    raise OutputError(f"{where} cannot be read: {_reason(error)}") from error
            yield from (found.get(row) for row in some)

    def content(self, row: int) -> dict[str, Any] | None:
        """The columns of one row, see `contents`."""
        return next(self.contents([row]))

    @property
    def source(self) -> str:
        """Where the candidates came from."""
        if self.recipe is not None:
            return str(self.recipe.data.train)
        name, described = next(iter(self.provenance.sources.items()), ("a dataset", None))
        return described if isinstance(described, str) else name

    @property
    def unstored(self) -> int:
        """Candidates whose content is not in the directory."""
        return len(self.scores) - len(self.places)


def read_run(folder: Path) -> Run:
    """Read what `curate select` (or `write_kept`) left in a directory, wherever that is now.

    Raises:
        OutputError: it is no such directory, or a file of it is damaged; which, and how.
        RecipeError: its recipe.yaml cannot be read.
    """
    if not os.path.isdir(folder):  # which takes a name that is too long, too
        raise OutputError(f"{folder}: no such directory.")
    if not (folder / "provenance.json").is_file() or not (folder / "scores.parquet").is_file():
        raise OutputError(
            f"{folder}: was not written by curate select; it needs provenance.json and "
            "scores.parquet."
        )
    provenance = _read_json(folder / "provenance.json", Provenance)
    scores = _read_scores(folder / "scores.parquet")
    kept = _read_train(folder / "train", int(scores["kept"].sum()))
    dropped, rows = _read_dropped(folder / DROPPED, scores)
    windows, recipe = folder / "windows.parquet", folder / "recipe.yaml"
    verification = folder / "verify.json"
    return Run(
        folder=folder,
        scores=scores,
        windows=_read_windows(windows) if windows.exists() else pl.DataFrame(),
        provenance=provenance,
        recipe=load_recipe(recipe) if recipe.exists() else None,
        verification=_read_json(verification, Verification) if verification.exists() else None,
        kept=kept,
        dropped=dropped,
        dropped_rows=rows,
    )


def listed(scores: pl.DataFrame, most: int = LISTED) -> list[int]:
    """The rows worth listing of a table sorted by rank, at most so many, best first.

    All, or a quarter each of the best, the worst and those around the last row kept; the
    others evenly over the ranks.
    """
    count, quarter = len(scores), most // 4
    if count <= most:
        return scores["row"].to_list()
    cut = int(scores["kept"].sum())
    around = range(max(0, cut - quarter // 2), min(count, cut + quarter // 2))
    chosen = {*range(quarter), *range(count - quarter, count), *around}
    others = [place for place in range(count) if place not in chosen]
    picked = np.linspace(0, len(others) - 1, most - len(chosen)).round().astype(int)
    chosen |= {others[place] for place in picked}
    return scores["row"].gather(sorted(chosen)).to_list()


def store_dropped(folder: Path, table: Dataset, scores: pl.DataFrame) -> None:
    """Write the dropped rows that are worth a look as `dropped.parquet`.

    Those that are listed, worst first, until they take 32 MiB: whoever looks at the
    directory later needs nothing else. The first column is the position in the source.

    Args:
        table: all candidates. scores: a line each, in their order.
    """
    places = {row: place for place, row in enumerate(scores["row"].to_list())}
    ranked = scores.sort("rank")
    kept = set(ranked.filter("kept")["row"].to_list())
    rows = [row for row in reversed(listed(ranked)) if row not in kept]
    if not rows:
        return
    plain = table.with_format("arrow")
    name = "row"
    while name in table.column_names:
        name = f"_{name}"
    schema = table.features.arrow_schema
    parts, size = list[pa.Table](), 0
    for first in range(0, len(rows), AT_A_TIME):
        some = rows[first : first + AT_A_TIME]
        part = embed_table_storage(plain[[places[row] for row in some]].cast(schema))
        size += part.nbytes
        if parts and size > STORED_BYTES:
            break
        parts.append(part.add_column(0, name, pa.array(some)))
    stored = pa.concat_tables(parts)
    features = datasets.Features({name: datasets.Value("int64"), **table.features})
    pq.write_table(stored.cast(features.arrow_schema).sort_by(name), folder / DROPPED)


def _read_json(path: Path, model: type[Any]) -> Any:
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OutputError(f"{path}: is damaged: {where}: {first['msg']}.") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {_reason(error)}") from error


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OutputError(f"{path}: cannot be read: {_reason(error)}") from error


def _read_scores(path: Path) -> pl.DataFrame:
    table = _typed(path, _read_table(path), COLUMNS)
    if len(table) == 0 or table["row"].n_unique() != len(table):
        raise OutputError(f"{path}: is damaged: it must have every row once, and at least one.")
    required = table.select("row", "score", "rank", "kept", "reason", "seen")
    if sum(required.null_count().row(0)):
        raise OutputError(f"{path}: is damaged: a value is missing.")
    return table.sort("rank")


def _read_windows(path: Path) -> pl.DataFrame:
    columns = {"first_step": pl.Int64, "steps": pl.Int64, "target_loss": pl.Float64}
    return _typed(path, _read_table(path), columns)


def _typed(path: Path, found: pa.Table, columns: dict[str, Any]) -> pl.DataFrame:
    try:
        table = pl.DataFrame(pl.from_arrow(found))
        return table.with_columns(pl.col(name).cast(kind) for name, kind in columns.items())
    except pl.exceptions.PolarsError as error:
        raise OutputError(f"{path}: is damaged: {_reason(error)}") from error


def _read_train(folder: Path, expected: int) -> Dataset:
    try:
        kept = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise OutputError(f"{folder}: cannot be read: {_reason(error)}") from error
    if not isinstance(kept, Dataset) or len(kept) != expected:
        raise OutputError(f"{folder}: is damaged: it must have the {expected} rows that are kept.")
    return kept.with_format("arrow")


def _read_dropped(path: Path, scores: pl.DataFrame) -> tuple[Dataset | None, list[int]]:
    if not path.exists():
        return None, []
    stored = _read_table(path)
    rows = stored.column(0).to_pylist() if stored.num_columns > 1 else []
    if not set(rows) <= set(scores.filter(~pl.col("kept"))["row"].to_list()):
        raise OutputError(f"{path}: is damaged: its first column must hold rows that were dropped.")
    return Dataset(stored.drop_columns(stored.column_names[0])).with_format("arrow"), rows


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[0].split()).rstrip(".") + "." if lines else f"{type(error).__name__}."


def lines_of(run: Run, rows: list[int]) -> Iterator[dict[str, Any]]:
    """The scores of some rows, in their order."""
    by_row = {line["row"]: line for line in run.scores.to_dicts()}
    return (by_row[row] for row in rows)
