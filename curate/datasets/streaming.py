"""Rows of a source as they come, some at a time, without a copy where that is possible."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from curate.datasets.csv_files import Use
from curate.datasets.files import (
    UNREADABLE,
    ending_of,
    matching,
    names_files,
    parts_of,
    plain_table,
    reason_of,
)
from curate.datasets.rows import batches
from curate.datasets.sources import read
from curate.errors import DataError


class Stream(NamedTuple):
    """The rows of a source.

    rows: how many there are. features: of their columns. tables: gives them in order, in tables of
    at most so many rows; whenever it is called anew.
    """

    rows: int
    features: Features
    tables: Callable[[int], Iterator[pa.Table]]


def stream(
    path: str,
    *,
    split: str | None = None,
    name: str | None = None,
    uses: Mapping[str, Use] | None = None,
) -> Stream:
    """A source to go through once. Arguments and errors are those of `read`.

    Parquet files of one schema are read as they are; what else there is, `read` puts into a file of
    Arrow first.
    """
    if split is None and name is None and names_files(path):
        files = matching(path)
        if ending_of(files[0]) == ".parquet" and (found := _parquet(files)) is not None:
            if found.rows == 0:
                raise DataError(f"{path}: has no rows.")
            return found
    data = read(path, split=split, name=name, uses=uses, outside_files=True)
    return Stream(
        len(data),
        data.features,
        lambda size: _cut((table for _, table in batches(data)), size),
    )


def _parquet(files: list[str]) -> Stream | None:
    """Parquet files; None if they differ in their columns."""
    schemas, rows = [], 0
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                schemas.append(opened.schema_arrow)
                rows += opened.metadata.num_rows
        except UNREADABLE as error:
            raise DataError(f"{file}: cannot be read: {reason_of(error)}") from error
    if any(not schema.equals(schemas[0], check_metadata=True) for schema in schemas):
        return None
    features = Features.from_arrow_schema(plain_table(schemas[0].empty_table()).schema)

    return Stream(
        rows,
        features,
        lambda size: _cut((plain_table(table) for _, table in parts_of(files)), size),
    )


def _cut(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of so many, the last perhaps fewer."""
    held, count = list[pa.Table](), 0
    for table in tables:
        held.append(table)
        count += len(table)
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)
