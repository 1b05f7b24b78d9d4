"""From the columns of a dataset to tensors, refusing what would be silently wrong."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets.images import decode_images, is_image_column
from curate.errors import DataError


def require_columns(data: Dataset, names: Sequence[str], source: str) -> None:
    """Raise DataError for the first column that `data` does not have."""
    for name in names:
        if name not in data.column_names:
            raise DataError(
                f"{source}: there is no column {name}; it has {', '.join(data.column_names)}."
            )


def match_features(
    data: Dataset, patterns: Sequence[str], exclude: Sequence[str], source: str
) -> list[str]:
    """The columns that `patterns` (names or shell patterns) choose, in the source's order."""
    chosen: list[str] = []
    for pattern in patterns:
        found = [
            n for n in data.column_names if fnmatch.fnmatchcase(n, pattern) and n not in exclude
        ]
        if not found:
            raise DataError(
                f"{source}: no column matches {pattern}; it has {', '.join(data.column_names)}."
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def read_features(
    data: Dataset,
    names: Sequence[str],
    source: str,
    *,
    dtype: torch.dtype,
    image_shape: Sequence[int] | None = None,
) -> Tensor:
    """Feature columns as one tensor of first dimension N.

    One column keeps its shape, (N, ...); several are flattened side by side, (N, F).
    Images become uint8, shape (N, channels, height, width).

    Raises:
        DataError: a null, a NaN, a ragged list or a column of another kind, with
            the column and the first row where it happens.
    """
    require_columns(data, names, source)
    parts = []
    for name in names:
        refuse_nulls(data, name, source)
        if is_image_column(data.features[name]):
            parts.append(decode_images(data, name, source, image_shape))
        else:
            parts.append(_numeric(data, name, source, dtype))
    if len(parts) == 1:
        return parts[0]
    if any(part.dtype == torch.uint8 for part in parts):
        raise DataError(
            f"{source}: an image column cannot be mixed with others; "
            f"data.columns.features chose {', '.join(names)}."
        )
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def as_numpy(data: Dataset, name: str) -> np.ndarray[Any, Any]:
    """A column as `datasets` makes it NumPy: floats become float32, too large ones infinite."""
    with np.errstate(over="ignore"):
        values: np.ndarray[Any, Any] = data.select_columns(name).with_format("numpy")[:][name]
    return values


def refuse_nulls(data: Dataset, name: str, source: str) -> None:
    """Raise DataError for the first null in a column."""
    column = data.with_format("arrow")[:][name]
    if column.null_count:
        row = int(np.argmax(pc.is_null(column).to_numpy(zero_copy_only=False)))
        raise DataError(f"{source}: column {name} is null at row {row}; fill it or drop the row.")


def _numeric(data: Dataset, name: str, source: str, dtype: torch.dtype) -> Tensor:
    column = data.with_format("arrow")[:][name].combine_chunks()
    values = column
    widths: list[int] = []
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([])
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = values.type
    while _is_list(values.type):
        widths.append(_width(values, name, source, len(data), widths))
        values = values.flatten()
        if values.null_count:
            position = int(np.argmax(pc.is_null(values).to_numpy(zero_copy_only=False)))
            row = position // int(np.prod(widths))
            raise DataError(f"{source}: column {name} has a null inside the list at row {row}.")
    if not (
        pa.types.is_integer(values.type)
        or pa.types.is_floating(values.type)
        or pa.types.is_boolean(values.type)
    ):
        raise DataError(
            f"{source}: column {name} holds {kind}; features must be numbers, lists of numbers "
            "or images."
        )
    array = values.to_numpy(zero_copy_only=False)
    tensor = torch.from_numpy(np.array(array, dtype=np.float64)).to(dtype)
    tensor = tensor.reshape(len(data), *(widths or [1]))
    finite = tensor.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        row = int(finite.int().argmin())
        raise DataError(
            f"{source}: column {name} is NaN or infinite at row {row}; fill it or drop the row."
        )
    return tensor


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _width(values: pa.Array, name: str, source: str, rows: int, outer: list[int]) -> int:
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    different = lengths != lengths[0]
    if different.any():
        row = int(np.argmax(different)) // int(np.prod(outer, dtype=int))
        raise DataError(
            f"{source}: column {name} has lists of different lengths, first at row {row} "
            f"({lengths[np.argmax(different)]} instead of {lengths[0]}); pad them first."
        )
    if lengths[0] == 0:
        raise DataError(f"{source}: column {name} holds empty lists ({rows} rows).")
    return int(lengths[0])
