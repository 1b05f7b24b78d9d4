"""What a Python session hands over itself, and the names that stand for it in a recipe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
from datasets import Dataset
from torch import Tensor

from curate.datasets.files import plain_table, reason_of
from curate.errors import DataError

PREFIX = "session:"
FAILURES = (
    *(pa.ArrowException, pl.exceptions.PolarsError, ValueError, TypeError),
    *(AttributeError, RuntimeError, IndexError, KeyError),
)
"""What libraries raise at data that they cannot take."""
_HANDED: dict[str, Any] = {}


@contextmanager
def handing(objects: Mapping[str, Any]) -> Iterator[None]:
    """A block in which `session:NAME` in a recipe stands for the object of that name."""
    before = dict(_HANDED)
    _HANDED.update({PREFIX + name: found for name, found in objects.items()})
    try:
        yield
    finally:
        _HANDED.clear()
        _HANDED.update(before)


def handed(path: str) -> Any:
    """The object that `session:NAME` stands for.

    Raises:
        DataError: no session hands it over now.
    """
    if path not in _HANDED:
        raise DataError(
            f"{path}: was an object of a Python session; save it to a file, and name that instead."
        )
    return _HANDED[path]


def as_dataset(data: Any, name: str) -> Dataset:
    """Rows in memory as a dataset, without a copy where they are Arrow.

    Args:
        data: a `datasets.Dataset`, a frame of Polars or pandas, an Arrow table, or a Dataset of
            torch with a length, whose items are mappings or (features, label); it is gone through
            once, so that random transforms are drawn once.
        name: for messages.

    Raises:
        DataError: it is something else, or its items are not alike.
    """
    try:
        return _converted(data, name)
    except FAILURES as error:
        reason = reason_of(error).rstrip(".")
        raise DataError(f"{name}: cannot be read as rows: {reason}.") from error


def _converted(data: Any, name: str) -> Dataset:
    if isinstance(data, Dataset):
        if data.format["type"] == "custom":
            raise DataError(
                f"{name}: has a transform of its own, which rows that are kept would lose; map it "
                "(Dataset.map) first."
            )
        return data
    if isinstance(data, Mapping) and all(isinstance(part, Dataset) for part in data.values()):
        raise DataError(f"{name}: has splits {', '.join(data)}; hand over one of them.")
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if isinstance(data, pl.DataFrame):
        data = data.to_arrow()
    if type(data).__module__.partition(".")[0] == "pandas":
        data = pa.Table.from_pandas(data, preserve_index=False).replace_schema_metadata(None)
    if isinstance(data, pa.Table):
        return Dataset(plain_table(data))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _from_items([data[k] for k in range(len(data))], name)
    raise DataError(
        f"{name}: is a {type(data).__name__}; hand over a datasets.Dataset, a frame of Polars or "
        "pandas, an Arrow table, or a Dataset of torch that has a length."
    )


def _from_items(items: Sequence[Any], name: str) -> Dataset:
    """A column per key, or features and label of pairs."""
    if not items:
        raise DataError(f"{name}: has no rows.")
    if not isinstance(items[0], Mapping):
        if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise DataError(f"{name}: its items must be mappings, or pairs of features and label.")
        items = [dict(zip(("features", "label"), item, strict=True)) for item in items]
    different = next((k for k, item in enumerate(items) if item.keys() != items[0].keys()), None)
    if different is not None:
        raise DataError(
            f"{name}: item {different} has {', '.join(map(str, items[different]))}, but item 0 "
            f"has {', '.join(map(str, items[0]))}."
        )
    columns = {str(key): [_plain(item[key]) for item in items] for key in items[0]}
    arrays = {key: _stacked(values) for key, values in columns.items()}
    others = Dataset.from_dict({key: columns[key] for key in columns if arrays[key] is None})
    table = pa.table({key: found for key, found in arrays.items() if found is not None})
    stacked = Dataset(table) if table.num_columns else None
    parts = [part for part in (stacked, others if others.column_names else None) if part]
    return datasets.concatenate_datasets(parts, axis=1).select_columns([*columns])


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _stacked(values: Sequence[Any]) -> pa.Array | None:
    """Arrays of one shape as a column of (nested) lists; None if they are something else."""
    if not all(isinstance(value, np.ndarray | np.generic) for value in values):
        return None
    if len({np.shape(value) for value in values}) > 1:
        return None
    whole = np.stack(values)
    column = pa.array(whole.reshape(-1))
    for size in whole.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
