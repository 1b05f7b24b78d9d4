"""The audit log of look-ahead in a loop: what was offered, what it was worth, what was kept.

A folder of Arrow IPC streams, two for every process that wrote to it:
`0000.candidates.arrow` with a row per candidate, `0000.windows.arrow` with a
row per window. Records are whole: what a run was writing when it died is left
out on reading. A run that is resumed begins a part that says where it goes on.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa

from curate.errors import DataError, OutputError, RunError

FORMERLY = {"realised": "realized"}
"""Columns by the names that they had, and have."""
CANDIDATES, WINDOWS = "candidates", "windows"
FACTS = b"curate"
"""The key of what a part knows beside its rows, as JSON in the metadata of its schema."""
CANDIDATE_COLUMNS: dict[str, pa.DataType] = {
    "window": pa.int64(),
    "step": pa.int64(),
    "batch": pa.int64(),
    "position": pa.int64(),
    "row": pa.int64(),
    "influence": pa.float64(),
    "value": pa.float64(),
    "weight": pa.float64(),
    "kept": pa.bool_(),
}
WINDOW_COLUMNS: dict[str, pa.DataType] = {
    "window": pa.int64(),
    "horizon": pa.int64(),
    "steps": pa.int64(),
    "target_loss": pa.float64(),
    "predicted": pa.float64(),
    "realized": pa.float64(),
    "effort": pa.string(),
    "alike": pa.float64(),
    "seconds": pa.float64(),
}


class AuditLog:
    """Writes one process's part of a log."""

    def __init__(
        self,
        folder: str | PathLike[str],
        targets: list[str],
        *,
        about: dict[str, Any] | None = None,
        goes_on: dict[str, Any] | None = None,
    ) -> None:
        """Start a part of its own in `folder`, which is made if need be.

        about: what is known of the dataset that rows are of. goes_on: the training that is gone
        on with: its `run`, and how many `windows` of it were decided, and `settled`, so far; what
        its earlier parts have beyond that is not read any more.

        Raises:
            OutputError: the folder cannot be written.
        """
        several = {f"influence/{name}": pa.float64() for name in targets if len(targets) > 1}
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            number = len(list(path.glob(f"*.{CANDIDATES}.arrow")))
            facts = {"windows": 0, "settled": 0} | (goes_on or {"run": uuid4().hex})
            self.run = facts["run"]
            self._candidates = _Stream(
                path / f"{number:04d}.{CANDIDATES}.arrow",
                CANDIDATE_COLUMNS | several,
                facts | {"about": about},
            )
            self._windows = _Stream(path / f"{number:04d}.{WINDOWS}.arrow", WINDOW_COLUMNS, {})
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}.") from error

    def candidates(self, columns: dict[str, Any]) -> None:
        """Enter candidates: column name -> values, each of shape (n,)."""
        self._candidates.write(columns)

    def windows(self, windows: Sequence[dict[str, Any]]) -> None:
        """Enter windows, each as the values of its columns by name."""
        self._windows.write({name: [values[name] for values in windows] for name in WINDOW_COLUMNS})


class _Stream:
    """An Arrow stream in a file that is complete up to its last record at any time.

    A record is one call of the system, however many columns it has.
    """

    def __init__(self, path: Path, columns: dict[str, pa.DataType], facts: dict[str, Any]) -> None:
        path.touch(exist_ok=False)
        self._path, self._file = path, pa.OSFile(str(path), "wb")
        self._schema = pa.schema(columns.items(), metadata={FACTS: json.dumps(facts)})
        self._append(self._schema.serialize())

    def write(self, columns: dict[str, Any]) -> None:
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._append(pa.RecordBatch.from_arrays(arrays, schema=self._schema).serialize())

    def _append(self, message: pa.Buffer) -> None:
        try:
            self._file.write(message)
        except OSError as error:  # which names no file
            raise RunError(
                f"{self._path}: cannot be written: {error.strerror or error}; make room there. "
                "What was logged before is whole."
            ) from error


def read_log(folder: str | PathLike[str]) -> pl.DataFrame:
    """A log as a table: one row per candidate offered, in order.

    Columns: `run` (which training; one that is resumed goes on with its own),
    `window`, `step` (optimizer steps since it began), `batch` (within the step), `position`
    (within the batch),
    `row` (the id that the loader was told to log, or null), `influence`
    (positive: the example helps; loss units) and `influence/<target>` where
    there are several, `value` (what the budget ranked), `weight` (in the mean
    that the loop trains on), `kept`; and, of the candidate's window, `horizon`,
    `steps`, `target_loss`, `predicted`, `realized`, `effort`, `alike` and
    `seconds`, null if it was never trained to its end.

    Raises:
        DataError: there is no log.
    """
    runs: dict[Any, tuple[int, pl.DataFrame, pl.DataFrame]] = {}
    for number, path in enumerate(_parts(folder)):
        candidates = _read(path, CANDIDATE_COLUMNS)
        windows = _read(path.with_name(path.name.replace(CANDIDATES, WINDOWS)), WINDOW_COLUMNS)
        facts = _facts(path)
        run, decided, settled = runs.get(facts.get("run"), (number, None, None))
        if decided is not None and settled is not None:  # it is gone on with from there
            decided = decided.filter(pl.col("window") < facts["windows"])
            settled = settled.filter(pl.col("window") < facts["settled"])
            candidates = pl.concat([decided, candidates], how="diagonal")
            windows = pl.concat([settled, windows], how="diagonal")
        runs[facts.get("run", number)] = run, candidates, windows
    tables = []
    for run, candidates, windows in runs.values():
        joined = candidates.join(windows, on="window", how="left", maintain_order="left")
        tables.append(joined.select(pl.lit(run, pl.Int64).alias("run"), pl.all()))
    return pl.concat(tables, how="diagonal")


def about(folder: str | PathLike[str]) -> list[dict[str, Any]]:
    """What the parts of a log know of the dataset that their rows are of."""
    known = [_facts(path).get("about") for path in _parts(folder)]
    return [facts for facts in known if facts is not None]


def _parts(folder: str | PathLike[str]) -> list[Path]:
    parts = sorted(Path(folder).glob(f"*.{CANDIDATES}.arrow"))
    if not parts:
        raise DataError(f"{folder}: holds no log of curate's.")
    return parts


def _facts(path: Path) -> dict[str, Any]:
    """What a part says of itself; nothing if it is of an older curate, or never got that far."""
    with path.open("rb") as file, suppress(pa.ArrowInvalid, OSError):
        metadata = pa.ipc.open_stream(file).schema.metadata or {}
        facts: dict[str, Any] = json.loads(metadata.get(FACTS, b"{}"))
        return facts
    return {}


def _read(path: Path, columns: dict[str, pa.DataType]) -> pl.DataFrame:
    """Everything whole in a stream; no rows of `columns` if the writer has not got that far."""
    schema, batches = pa.schema(columns.items()), list[pa.RecordBatch]()
    if not path.exists():  # its writer died before it made both of its files
        return pl.DataFrame(pl.from_arrow(schema.empty_table()))
    with path.open("rb") as file, suppress(StopIteration, pa.ArrowInvalid, OSError):
        reader = pa.ipc.open_stream(file)
        schema = reader.schema
        while True:
            batches.append(reader.read_next_batch())
    table = pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches, schema=schema)))
    return table.rename(FORMERLY, strict=False)
