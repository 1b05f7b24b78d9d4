"""A finished run, read back from its directory alone. Loads no torch."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import table_cast
from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from curate.errors import OutputError
from curate.output.audit_log import FORMERLY
from curate.output.rows import RowViewer, Shown, in_python
from curate.output.scores import SavedScores
from curate.output.words import visible
from curate.recipe import Recipe, load_recipe
from curate.runtime.large import released
from curate.runtime.tables import embedded, read_mapped
from curate.runtime.tables import take as rows_at

PROVENANCE, DROPPED = "provenance.json", "dropped.parquet"
LABELS = "labels.parquet"
"""Of rows that the judged model had not trained on: the label that it finds likeliest."""
LISTED = 1500
"""Rows in the report's table, and dropped rows that are stored."""
STORED_BYTES = 2**25
AT_A_TIME = 256
WINDOWS = {"first_step": pl.Int64, "steps": pl.Int64, "target_loss": pl.Float64}


def _having(*names: str) -> AfterValidator:
    """The check that a record has all of these."""

    def check(record: dict[str, Any]) -> dict[str, Any]:
        if missing := [name for name in names if name not in record]:
            raise ValueError(f"{missing[0]} is missing")
        return record

    return AfterValidator(check)


Record = dict[str, Any]
Numbers = dict[str, float | None]
Metric = Annotated[dict[str, float | list[float]], _having("mean", "std", "values")]
Way = Annotated[
    Record,
    _having("name", "rows", "share", "loss", "last", "metrics", "gain", "low", "high"),
]
Part = Annotated[dict[str, str | int | float | None], _having("value", "candidates", "kept")]
Verification = Annotated[Record, _having("examples", "verdict")]


class Retrained(TypedDict):
    """One way of choosing, retrained from scratch; beside the loss, other metrics by name."""

    trained_on: str
    rows: int
    loss: Metric


class Worth(TypedDict):
    """What choosing is worth, see `pipeline.worth`."""

    answer: Literal["pays", "does not pay", "cannot tell"]
    share: float | None
    chosen: Way
    tried: list[Way]
    against: list[Way]
    judging: int
    target_rows: int
    limit: int
    untrained: NotRequired[Way | None]


class Repeats(TypedDict):
    """How far scores repeat, see `selection.policies.combine`; evidence was a number once."""

    correlation: float
    low: float
    high: float
    reliability: float
    foretold: float
    target_rows: int
    rows_needed: int | None
    evidence: NotRequired[float | dict[str, float]]


class Provenance(TypedDict, total=False):
    """The parts of provenance.json that are shown."""

    policy: str
    steps: int
    device: str
    processes: int
    seconds: dict[str, float]
    sources: Record
    versions: dict[str, str]
    git_commit: str | None
    truncated: dict[str, int]
    left_out: dict[str, int]
    tokens: Annotated[Numbers, _having("candidates", "kept")]
    noise: Annotated[Numbers, _having("planted", "kept", "auroc")]
    error: Annotated[Numbers, _having("probes", "signal", "error", "jump", "propagation")]
    repeats: Repeats
    prediction: Annotated[Numbers, _having("sample", "spearman", "low", "high", "alike", "width")]
    worth: Worth
    cost: float
    evaluation: list[Retrained]
    labels: Annotated[Record, _having("asked", "suspected", "classes")]
    relabelled: Annotated[Record, _having("file", "rows", "changed")]
    composition: dict[str, list[Part]]
    missing: dict[str, str]
    failed: dict[str, str]


@dataclass(frozen=True)
class RowView:
    """A row, ready to be looked at.

    line: its scores. why: it was kept or dropped. shown: its columns; none if they are not
    stored. label: in words. preview: what identifies it in a list.
    """

    line: dict[str, Any]
    why: str
    shown: list[Shown]
    label: str | None
    preview: str

    @property
    def picture(self) -> Shown | None:
        """The first of its columns that is a picture or a drawing."""
        return next((column for column in self.shown if column.picture is not None), None)


@dataclass(frozen=True)
class SavedRun:
    """A directory that `curate select` wrote.

    scores: a line per candidate. windows: a line per window; empty if there are none. provenance,
    verification: the content of provenance.json and verify.json. content: the rows that are
    stored, as Arrow: those kept, in the order of the source, then the dropped ones that
    `store_dropped` wrote. dropped: the positions of these in the source.
    """

    folder: Path
    scores: SavedScores
    windows: pl.DataFrame
    provenance: dict[str, Any]
    verification: dict[str, Any] | None
    recipe: Recipe | None
    content: Dataset
    dropped: list[int]

    def places(self, rows: Sequence[int]) -> dict[int, int]:
        """Where in `content` some rows are, those of them that are stored."""
        wanted = {*rows}
        stored = {row: self.kept + k for k, row in enumerate(self.dropped) if row in wanted}
        return self.scores.places(rows) | stored

    @cached_property
    def viewer(self) -> RowViewer:
        """How its rows are shown."""
        return RowViewer(self.content.features, self.recipe)

    @property
    def kept(self) -> int:
        """Rows kept."""
        return self.scores.kept

    @property
    def policy(self) -> str:
        """What chose the rows."""
        return str(self.provenance.get("policy", "look_ahead, in a training loop"))

    @property
    def source(self) -> str:
        """Where the candidates came from."""
        if self.recipe is not None:
            return visible(str(self.recipe.data.train))
        sources = self.provenance.get("sources", {})
        name, described = next(iter(sources.items()), ("a dataset", None))
        return visible(described if isinstance(described, str) else name)

    @property
    def has_influences(self) -> bool:
        """Whether its policy values rows by their influence."""
        return self.scores.has_influences

    @property
    def unstored(self) -> int:
        """Candidates whose content is not in the directory."""
        return len(self.scores) - len(self.content)

    def views(self, rows: Sequence[int]) -> Iterator[RowView]:
        """Rows by their positions in the source, in that order.

        Raises:
            OutputError: one is stored, but cannot be read.
        """
        lines, places = self.scores.lines(rows), self.places(rows)
        for first in range(0, len(rows), AT_A_TIME):
            some = rows[first : first + AT_A_TIME]
            stored = [row for row in some if row in places]
            contents: list[dict[str, Any]] = []
            if stored:
                with _reading(f"{self.folder}: rows {stored[0]} to {stored[-1]}"):
                    table = self.content[[places[row] for row in stored]]
                    columns = (in_python(column) for column in table.columns)
                    contents = [
                        dict(zip(table.column_names, cells, strict=True))
                        for cells in zip(*columns, strict=True)
                    ]
                released()
            by_row = dict(zip(stored, contents, strict=True))
            for row in some:
                yield self._view(lines[row], by_row.get(row))

    def _view(self, line: dict[str, Any], content: dict[str, Any] | None) -> RowView:
        place = f"{visible(line['reason'])}: rank {line['rank']:,} of {len(self.scores):,}"
        why = f"dropped, {place}, of which {self.kept:,} are kept"
        if line["kept"]:
            why = f"kept, {place}"
        if content is None:
            return RowView(line, why, [], None, "")
        shown = self.viewer.view(content)
        return RowView(line, why, shown, self.viewer.label_of(content), self.viewer.preview(shown))


def read_run(folder: Path) -> SavedRun:
    """Read what `curate select` (or `write_kept`) left in a directory, wherever that is now.

    Raises:
        OutputError: it is no such directory, or a file of it is damaged; which, and how.
        RecipeError: its recipe.yaml cannot be read.
    """
    if not os.path.isdir(folder):  # which takes a name that is too long, too
        raise OutputError(f"{folder}: no such directory.")
    if not (folder / PROVENANCE).is_file() or not (folder / "scores.parquet").is_file():
        raise OutputError(
            f"{folder}: was not written by curate select; it needs {PROVENANCE} and scores.parquet."
        )
    provenance = _read_json(folder / PROVENANCE, Provenance)
    scores = read_scores(folder / "scores.parquet")
    content, dropped = _read_content(folder, scores)
    windows, recipe = folder / "windows.parquet", folder / "recipe.yaml"
    verification = folder / "verify.json"
    return SavedRun(
        folder=folder,
        scores=scores,
        windows=_read_table(windows, WINDOWS) if windows.exists() else pl.DataFrame(),
        provenance=provenance,
        verification=_read_json(verification, Verification) if verification.exists() else None,
        recipe=load_recipe(recipe) if recipe.exists() else None,
        content=content,
        dropped=dropped,
    )


def listed(count: int, kept: int, most: int = LISTED) -> list[int]:
    """The ranks worth listing of so many, of whom so many are kept; at most so many, ascending.

    All, or a quarter each of the best, the worst and those around the last row kept; the
    others evenly over the ranks.
    """
    quarter = most // 4
    if count <= most:
        return [*range(1, count + 1)]
    around = range(max(0, kept - quarter // 2), min(count, kept + quarter // 2))
    chosen = np.unique([*range(quarter), *range(count - quarter, count), *around])
    picked = np.linspace(0, count - len(chosen) - 1, most - len(chosen)).round().astype(int)
    others = picked + np.searchsorted(chosen - np.arange(len(chosen)), picked, side="right")
    return sorted(int(place) + 1 for place in (*chosen, *others))


def store_dropped(folder: Path, table: Dataset, scores: SavedScores) -> None:
    """Write the dropped rows that are worth a look as `dropped.parquet`.

    Those that are listed, worst first, and in turn those whose label is suspected, until they
    take 32 MiB: whoever looks at the directory later needs nothing else. The first column is the
    position in the source.

    Args:
        table: all candidates, in the order of the source. scores: a line each.
    """
    from curate.runtime.files import write_whole  # loads torch, which looking at a run does not

    labels = read_labels(folder).filter("is_label_issue").sort("label_score")
    worth_a_look = scores.ranked(listed(len(scores), scores.kept))[::-1]
    in_turn = chain.from_iterable(zip_longest(worth_a_look, labels["row"]))
    every = [row for row in dict.fromkeys(in_turn) if row is not None]
    lines = scores.lines(every)
    rows = [row for row in every if row in lines and not lines[row]["kept"]]
    if not rows:
        return
    places, schema = scores.places(rows, among_all=True), table.features.arrow_schema
    parts, size = list[pa.Table](), 0
    for first in range(0, len(rows), AT_A_TIME):
        some = rows_at(table, np.array([places[row] for row in rows[first : first + AT_A_TIME]]))
        parts.append(embedded(table_cast(some, schema)))
        size += parts[-1].nbytes
        if first and size > STORED_BYTES:
            parts.pop()
            break
    name = "row"
    while name in table.column_names:
        name = f"_{name}"
    content = pa.concat_tables(parts)
    stored = content.add_column(0, name, pa.array(rows[: len(content)]))
    features = datasets.Features({name: datasets.Value("int64"), **table.features})
    ordered = table_cast(stored, features.arrow_schema).take(pc.sort_indices(stored[name]))
    write_whole(folder / DROPPED, lambda part: pq.write_table(ordered, part))


@contextmanager
def _reading(what: Path | str) -> Iterator[None]:
    """Raise whatever is wrong with something read as an OutputError that names it."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OutputError(f"{what}: is damaged: {where}: {first['msg']}.") from error
    except (
        *(OSError, ValueError, LookupError, TypeError),
        *(pa.ArrowException, pl.exceptions.PolarsError),
    ) as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise OutputError(f"{what}: cannot be read: {reason}.") from error


def _read_json(path: Path, shape: Any) -> Any:
    with _reading(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        TypeAdapter(shape).validate_python(values, strict=True)
        return values


def _read_table(path: Path, columns: dict[str, Any]) -> pl.DataFrame:
    with _reading(path):
        table = pl.DataFrame(pl.from_arrow(pq.read_table(path)))
        table = table.rename(FORMERLY, strict=False)
        return table.with_columns(pl.col(name).cast(kind) for name, kind in columns.items())


def read_labels(folder: Path) -> pl.DataFrame:
    """What the judged model finds likeliest, see `pipeline.label_guesses`; no lines without any."""
    path = folder / LABELS
    kinds = {"row": pl.Int64, "is_label_issue": pl.Boolean, "label_score": pl.Float64}
    kinds |= {"given_label": pl.String, "predicted_label": pl.String, "probability": pl.Float64}
    return _read_table(path, kinds) if path.exists() else pl.DataFrame(schema=kinds)


def _kept_rows(folder: Path) -> Dataset:
    """The rows of a dataset on disk, in files whose pages are let go of."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tables = []
    for file in state["_data_files"]:
        tables.append(read_mapped(folder / file["filename"]))
        released()
    info = datasets.DatasetInfo.from_directory(str(folder))
    return Dataset(pa.concat_tables(tables), info, fingerprint=state["_fingerprint"])


def read_scores(path: Path) -> SavedScores:
    """The scores of a run.

    Raises:
        OutputError: its file is not there, or is damaged.
    """
    with _reading(path):
        return SavedScores(path)


def _read_content(folder: Path, scores: SavedScores) -> tuple[Dataset, list[int]]:
    """The rows of train/ and dropped.parquet, and the positions of the latter in the source."""
    kept, rows = scores.kept, list[int]()
    with _reading(folder / "train"):
        content = Dataset.from_dict({})
        if kept:
            content = _kept_rows(folder / "train")
        if len(content) != kept:
            raise ValueError(f"it must have the {kept} rows that are kept")
    path = folder / DROPPED
    if path.exists():
        with _reading(path):
            table = pq.read_table(path)
            rows = table.column(0).to_pylist()
            lines = scores.lines(rows)
            if any(row not in lines or lines[row]["kept"] for row in rows):
                raise ValueError("its first column must hold rows that were dropped")
            others = Dataset(table.drop_columns(table.column_names[0]))
            if kept:
                others = Dataset(table_cast(others.data.table, content.features.arrow_schema))
            content = datasets.concatenate_datasets([content, others]) if kept else others
    return content.with_format("arrow"), rows
