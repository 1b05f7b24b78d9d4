"""The audit log of look-ahead in a loop: what was offered, what it was worth, what was kept.

A folder of Arrow IPC streams, two for every process that wrote to it:
`0000.candidates.arrow` with a row per candidate, `0000.windows.arrow` with a
row per window. A window is on disk before the loop trains on it, so a run that
dies loses nothing; what it was writing when it died is left out on reading.
"""

from collections.abc import Iterable, Iterator
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from curate.errors import DataError, OutputError

CANDIDATES, WINDOWS = "candidates", "windows"
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
    "realised": pa.float64(),
    "seconds": pa.float64(),
}


class AuditLog:
    """Writes one process's part of a log, each record on disk when the call returns."""

    def __init__(self, folder: str | PathLike[str], targets: list[str]) -> None:
        """Start a part of its own in `folder`, which is made if need be.

        Raises:
            OutputError: the folder cannot be written.
        """
        several = {f"influence/{name}": pa.float64() for name in targets if len(targets) > 1}
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._number = len(list(self._folder.glob(f"*.{WINDOWS}.arrow")))
            self._candidates = self._stream(CANDIDATES, CANDIDATE_COLUMNS | several)
            self._windows = self._stream(WINDOWS, WINDOW_COLUMNS)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}.") from error

    def candidates(self, batches: Iterable[dict[str, Any]]) -> None:
        """Enter batches of candidates: column name -> values, each of shape (n,)."""
        self._candidates.write(batches)

    def window(self, **values: Any) -> None:
        """Enter one window."""
        self._windows.write([{name: [value] for name, value in values.items()}])

    def _stream(self, kind: str, columns: dict[str, pa.DataType]) -> "_Stream":
        path = self._folder / f"{self._number:04d}.{kind}.arrow"
        path.touch(exist_ok=False)
        return _Stream(path, pa.schema(columns.items()))


class _Stream:
    """An Arrow stream in a file that is complete up to its last record at any time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._buffer = BytesIO()
        self._writer = pa.ipc.new_stream(self._buffer, schema)
        self._append()

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        for columns in records:
            arrays = [pa.array(columns[f.name], type=f.type) for f in self._schema]
            self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._append()

    def _append(self) -> None:
        with self._path.open("ab") as file:
            file.write(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()


def read_log(folder: str | PathLike[str]) -> pl.DataFrame:
    """A log as a table: one row per candidate offered, in order.

    Columns: `run` (which process), `window`, `step` (optimizer steps since the
    loader was made), `batch` (within the step), `position` (within the batch),
    `row` (the id that the loader was told to log, or null), `influence`
    (positive: the example helps; loss units) and `influence/<target>` where
    there are several, `value` (what the budget ranked), `weight` (in the mean
    that the loop trains on), `kept`; and, of the candidate's window, `horizon`,
    `steps`, `target_loss`, `predicted`, `realised` and `seconds`, null if it
    was never trained to its end.

    Raises:
        DataError: there is no log.
    """
    parts = sorted(Path(folder).glob(f"*.{CANDIDATES}.arrow"))
    if not parts:
        raise DataError(f"{folder}: holds no log of curate's.")
    tables = []
    for run, path in enumerate(parts):
        candidates = _read(path, CANDIDATE_COLUMNS)
        windows = _read(path.with_name(path.name.replace(CANDIDATES, WINDOWS)), WINDOW_COLUMNS)
        number = pl.lit(run, dtype=pl.Int64).alias("run")
        joined = candidates.join(windows, on="window", how="left", maintain_order="left")
        tables.append(joined.select(number, pl.all()))
    return pl.concat(tables, how="diagonal")


def _read(path: Path, columns: dict[str, pa.DataType]) -> pl.DataFrame:
    """Everything whole in a stream; no rows of `columns` if the writer has not got that far."""
    table = pa.schema(columns.items()).empty_table()
    with path.open("rb") as file:
        try:
            reader = pa.ipc.open_stream(file)
        except (pa.ArrowInvalid, OSError):
            reader = None
        if reader is not None:
            table = pa.Table.from_batches(list(_whole_batches(reader)), schema=reader.schema)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _whole_batches(reader: pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    """All records but one that the writer died in."""
    while True:
        try:
            yield reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return
