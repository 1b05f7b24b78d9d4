"""Batches of rows in the forms that libraries give them: to Arrow, and back with more columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
from datasets import Dataset
from datasets.formatting.formatting import LazyBatch


def names_of(rows: Any) -> list[str]:
    """The columns of a batch: an Arrow table, a frame of Polars or pandas, a mapping of columns."""
    if isinstance(rows, pa.Table):
        return list(rows.column_names)
    return list(rows.columns if isinstance(rows, pl.DataFrame) else rows)


def as_arrow(rows: Any, names: Sequence[str]) -> pa.Table:
    """Some columns of a batch, with what it says of them (names of classes, what is a picture)."""
    if isinstance(rows, pa.Table):
        return rows.select(names)
    if isinstance(rows, pl.DataFrame):
        return rows.select(names).to_arrow()
    if not isinstance(rows, LazyBatch):
        return _from_columns(rows, names)
    stored = [name for name in names if name in rows.keys_to_format]  # and nobody changed
    table, features = rows.pa_table.select(stored), rows.formatter.features
    changed = [name for name in names if name not in stored]
    if changed or not features:
        return _from_columns(rows, names)
    known = datasets.Features({name: features[name] for name in stored})
    return table.replace_schema_metadata(known.arrow_schema.metadata)


def with_columns(rows: Any, columns: Mapping[str, pa.Array]) -> Any:
    """A batch with more columns, in its own form; a null is NaN where there is no null."""
    if isinstance(rows, pl.DataFrame):
        return rows.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    if isinstance(rows, pa.Table):
        for name, values in columns.items():
            rows = rows.append_column(name, values)
        return rows
    if isinstance(rows, LazyBatch):  # its other columns stay as they are stored
        return rows | {name: values.to_pylist() for name, values in columns.items()}
    plain = {n: values.to_numpy(zero_copy_only=False) for n, values in columns.items()}
    return rows.assign(**plain) if hasattr(rows, "assign") else {**rows, **plain}


def _from_columns(rows: Any, names: Sequence[str]) -> pa.Table:
    """Columns that are arrays, tensors or lists, perhaps of pictures, in Arrow."""
    columns = {name: rows[name] for name in names}
    for name, values in columns.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind == "O":
            columns[name] = list(values)
    return Dataset.from_dict(columns).data.table
