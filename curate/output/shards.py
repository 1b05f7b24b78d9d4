"""Rows of a dataset, taken and written batch by batch: memory does not grow with their number."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.table import table_cast
from numpy.typing import NDArray

from curate.runtime.large import released
from curate.runtime.tables import EMBEDDED, brings_files, embedded, take

MOST_ROWS, MOST_BYTES = 2**15, 2**22
"""Of a batch, about; rows that bring outside files with them come `EMBEDDED` at a time."""
SHARD_BYTES = 500 * 10**6
"""Of a file of rows, at most but for its last batch."""


def batches(table: Dataset, places: NDArray[Any] | None = None) -> Iterator[pa.Table]:
    """The rows at some places, ascending, shape (n,), all if None; as Arrow, in their order.

    Memory: a batch, and what of the dataset's own file is mapped while it is read.
    """
    count, size = len(table) if places is None else len(places), _rows_at_a_time(table)
    for first in range(0, count, size):
        last = min(count, first + size)
        yield take(table, np.arange(first, last) if places is None else places[first:last])
        released()


def write_shards(folder: Path, table: Dataset, kept: NDArray[Any]) -> None:
    """Write the rows at the places `kept`, ascending, n > 0, as split `train` of a dataset.

    Rows, features and files are those that `save_to_disk` leaves: it writes the first row, and
    with it all that is not rows.
    """
    one = table.select(range(int(kept[0]), int(kept[0]) + 1))
    DatasetDict({"train": one}).save_to_disk(str(folder))
    (sample,) = (folder / "train").glob("*.arrow")
    with pa.memory_map(str(sample)) as file:
        schema = pa.ipc.open_stream(file).schema
    sample.unlink()
    written = _write(folder / "train", table, kept, schema)
    shards = [f"data-{k:05d}-of-{len(written):05d}.arrow" for k in range(len(written))]
    for path, name in zip(written, shards, strict=True):
        path.rename(path.with_name(name))
    state = folder / "train" / "state.json"
    values = json.loads(state.read_text(encoding="utf-8"))
    values |= {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": _fingerprint(table, kept),
    }
    state.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def _write(folder: Path, table: Dataset, kept: NDArray[Any], schema: pa.Schema) -> list[Path]:
    """Write the shards under names of their own; returns these."""
    paths, size, writer = list[Path](), SHARD_BYTES, None
    try:
        for rows in batches(table, kept):
            rows = table_cast(rows, schema)  # Arrow's forgets lengths, breaks nulls in lists
            rows = embedded(rows)
            if writer is None or size + rows.nbytes > SHARD_BYTES:
                if writer is not None:
                    writer.close()
                paths.append(folder / f"{len(paths)}.arrow")
                writer, size = pa.RecordBatchStreamWriter(str(paths[-1]), schema), 0
            rows = rows.combine_chunks()  # few, so that few are looked at
            writer.write_table(table_cast(rows, schema))
            size += rows.nbytes
    finally:
        if writer is not None:
            writer.close()
    return paths


def _rows_at_a_time(table: Dataset) -> int:
    if brings_files(table.features):
        return EMBEDDED
    data = table.data
    return int(np.clip(MOST_BYTES * len(data) // max(1, data.nbytes), 1, MOST_ROWS))


def _fingerprint(table: Dataset, kept: NDArray[Any]) -> str:
    """By which caches know the rows: of the dataset's own, and those that are kept."""
    digest = hashlib.blake2b(str(table._fingerprint).encode(), digest_size=8)
    for first in range(0, len(kept), MOST_ROWS):
        digest.update(np.ascontiguousarray(kept[first : first + MOST_ROWS], np.int64).data)
    return digest.hexdigest()
