"""Which dataset a log's rows are about: a few of its rows, digested column by column."""

import hashlib
from typing import Any

from datasets import Dataset
from torch.utils.data import Subset

from curate.errors import DataError
from curate.integrations.options import Read

SAMPLE = 64
"""Rows that are looked at, the first and the last among them."""


def sampled(dataset: Any, row: Read | None) -> dict[str, Any] | None:
    """Some rows of what a loop reads: their ids, and a digest of every column's values.

    None where rows cannot be told: `row` is no column of it, or it is no `datasets.Dataset`.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if not isinstance(dataset, Dataset) or row not in dataset.column_names or not len(dataset):
        return None
    last = len(dataset) - 1
    positions = sorted({round(k * last / (SAMPLE - 1)) for k in range(SAMPLE)})
    rows = _values(dataset, positions, str(row))
    if not all(isinstance(value, int) for value in rows):
        return None
    columns = {
        name: _digest(_values(dataset, positions, name))
        for name in dataset.column_names
        if name != row
    }
    return {"rows": rows, "columns": columns}


def require_same(about: dict[str, Any], data: Dataset, log: Any) -> list[str]:
    """Compare the columns that both have, for the rows that were looked at.

    Returns:
        These columns.

    Raises:
        DataError: one differs.
    """
    rows = about["rows"]
    if not all(0 <= row < len(data) for row in rows):
        raise DataError(
            f"{log}: the loop's dataset has rows {min(rows)} to {max(rows)}, but this one has "
            f"{len(data)} rows; give the dataset that `row` names rows of."
        )
    common = [name for name in data.column_names if name in about["columns"]]
    for name in common:
        if _digest(_values(data, rows, name)) != about["columns"][name]:
            raise DataError(
                f"{log}: column {name} of the dataset does not hold what it held in the one that "
                "the loop read; give the dataset that `row` names rows of, with its columns as "
                "the loop read them. Columns of other names are not compared."
            )
    return common


def _values(dataset: Dataset, positions: list[int], name: str) -> list[Any]:
    """As they are stored, without whatever transforms them on the way to a loop."""
    values: list[Any] = dataset.with_format("arrow")[positions].column(name).to_pylist()
    return values


def _digest(values: list[Any]) -> str:
    return hashlib.blake2b(repr([*map(_content, values)]).encode(), digest_size=8).hexdigest()


def _content(value: Any) -> Any:
    """A value without the path that a picture's or recording's bytes once had."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"]:
        return value["bytes"]
    return value
