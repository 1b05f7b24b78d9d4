"""From the columns of a dataset to tensors, refusing what would be silently wrong."""

import fnmatch
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Value
from torch import Tensor

from curate.datasets.images import decode_images, is_image_column
from curate.datasets.rows import batches
from curate.datasets.tensors import large_tensor
from curate.datasets.tensors import parts as pieces_of
from curate.errors import DataError

SHOWN = 40
"""Characters of a cell in a message."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def require_columns(data: Dataset, names: Sequence[str], source: str) -> None:
    """Raise DataError for the first column that `data` does not have."""
    there = data.column_names
    known = {*there}
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise DataError(f"{source}: there is no column {missing}; it has {', '.join(there)}.")


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern means: the one that it is itself, or those a shell would match."""
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def match_features(
    data: Dataset, patterns: Sequence[str], exclude: Sequence[str], source: str
) -> list[str]:
    """The columns that `patterns` choose, in the order of patterns and then of the source.

    A pattern is a name or a shell pattern. Columns in `exclude` are never chosen.
    """
    offered = [name for name in data.column_names if name not in exclude]
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = matching(pattern, offered)
        if not found:
            raise DataError(
                f"{source}: no column matches {pattern}; it has {', '.join(data.column_names)}."
            )
        chosen |= dict.fromkeys(found)
    return [*chosen]


def read_features(
    data: Dataset,
    names: Sequence[str],
    source: str,
    *,
    dtype: torch.dtype,
    image_shape: Sequence[int] | None = None,
    image_size: Sequence[int] | None = None,
) -> Tensor:
    """Feature columns as one tensor of first dimension N.

    One column keeps its shape, (N, ...); several are flattened side by side, (N, F).
    Images become uint8, shape (N, channels, height, width), those of `image_size` if given.

    Raises:
        DataError: a null, a NaN, a ragged list or a column of another kind, with
            the column and the first row where it happens.
    """
    require_columns(data, names, source)
    parts, features = [], data.features  # made anew each time it is asked for
    if not any(is_image_column(features[name]) for name in names):
        numbers = _by_batches(data.select_columns([*names]), names, dtype)
        if numbers is not None:
            return _as_pixels(numbers, image_shape, source)
    table: pa.Table = data.select_columns([*names]).with_format("arrow")[:]
    for name in names:
        column = _without_nulls(table.column(name), name, source)
        if is_image_column(features[name]):
            parts.append(decode_images(data, name, source, image_shape, image_size))
        else:
            parts.append(_numeric(column, f"{source}: column {name}", dtype))
    pixels = [part.dtype == torch.uint8 for part in parts]
    if pixels == [True]:
        return parts[0]
    if any(pixels):
        raise DataError(
            f"{source}: an image column cannot be mixed with others; "
            f"data.columns.features chose {', '.join(names)}."
        )
    one = len(parts) == 1
    numbers = parts[0] if one else torch.cat([part.flatten(1) for part in parts], dim=1)
    return _as_pixels(numbers, image_shape, source)


def _as_pixels(numbers: Tensor, shape: Sequence[int] | None, source: str) -> Tensor:
    """Numbers, (N, ...), as images, (N, channels, height, width); as they are without a shape.

    shape: [height, width] or [height, width, channels], row by row with the channels last.
    """
    if shape is None:
        return numbers
    height, width, channels = (*shape, 1)[:3]
    if numbers[0].numel() != math.prod(shape):
        raise DataError(
            f"{source}: a row has {numbers[0].numel()} numbers, but data.columns.image_shape "
            f"{[*shape]} needs {math.prod(shape)}."
        )
    if channels == 1:
        return numbers.reshape(len(numbers), 1, height, width)
    images = large_tensor((len(numbers), channels, height, width), numbers.dtype)
    for rows in pieces_of(images):
        images[rows] = numbers[rows].reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return images


def _by_batches(data: Dataset, names: Sequence[str], dtype: torch.dtype) -> Tensor | None:
    """Columns of numbers, read batch by batch; None if one has to be seen whole, or refused."""
    found: Tensor | None = None
    for rows, table in batches(data):
        if any(_is_json(field.type) for field in table.schema):
            return None
        try:
            columns = [_without_nulls(table.column(name), name, "") for name in names]
            parts = [_numeric(column, "", dtype) for column in columns]
        except DataError:
            return None
        part = parts[0] if len(parts) == 1 else torch.cat([p.flatten(1) for p in parts], dim=1)
        if found is None:
            found = large_tensor((len(data), *part.shape[1:]), dtype)
        if part.shape[1:] != found.shape[1:]:
            return None
        found[rows] = part
    return found


def holds_strings(feature: Any) -> bool:
    """Whether a column of this feature holds strings."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def refuse_nulls(data: Dataset, name: str, source: str) -> None:
    """Raise DataError if there is no such column, or at its first null."""
    require_columns(data, [name], source)
    for rows, table in batches(data.select_columns([name])):
        _without_nulls(table.column(0), name, source, rows.start)


def _without_nulls(
    column: pa.ChunkedArray, name: str, source: str, first: int = 0
) -> pa.ChunkedArray:
    if column.null_count:
        row = first + _first_null(column)
        raise DataError(f"{source}: column {name} is null at row {row}; fill it or drop the row.")
    return column


def _first_null(values: pa.Array | pa.ChunkedArray) -> int:
    return int(np.argmax(pc.is_null(values).to_numpy(zero_copy_only=False)))


def _numeric(column: pa.ChunkedArray, where: str, dtype: torch.dtype) -> Tensor:
    """Numbers of shape (N, 1), or lists of numbers of shape (N, ...)."""
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        json_text = _is_json(values.type)
        values = _from_json(values.storage) if json_text else values.storage
    kind, widths = values.type, list[int]()
    while isinstance(values.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        widths.append(_width(values, where, math.prod(widths)))
        values = values.flatten()
        if values.null_count:
            row = _first_null(values) // math.prod(widths)
            raise DataError(f"{where} has a null inside the list at row {row}.")
    types = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not any(is_type(values.type) for is_type in types):
        raise DataError(
            f"{where} holds {kind}; features must be numbers, lists of numbers or images"
            f"{_first_other(column)}."
        )
    array = values.to_numpy(zero_copy_only=False)
    array = array.astype(array.dtype if array.dtype.kind == "f" else np.float64)
    tensor = torch.from_numpy(array).to(dtype).reshape(len(column), *(widths or [1]))
    if not np.isfinite(tensor.numpy()).all():
        row = int(tensor.flatten(1).isfinite().all(dim=1).int().argmin())
        raise DataError(f"{where} is NaN or infinite at row {row}; fill it or drop the row.")
    return tensor


def _is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _from_json(texts: pa.Array) -> pa.Array:
    """Numbers or lists of numbers from their JSON; the texts if they are not that."""
    try:
        return pa.array([json.loads(text, parse_int=float) for text in texts.to_pylist()])
    except pa.ArrowException:
        return texts


def _first_other(column: pa.ChunkedArray) -> str:
    """Which row it is that makes text, or JSON, of a column of numbers; nothing if it is none."""
    for row, cell in enumerate(column.to_pylist()):
        if not isinstance(cell, str):
            break
        if NUMBER.fullmatch(cell.strip()):
            continue
        try:
            np.asarray(json.loads(cell), dtype=np.float64)
        except (ValueError, TypeError):
            return f", but row {row} is {cell[:SHOWN]!r}"
    return ""


def _width(lists: pa.Array, where: str, per_row: int) -> int:
    """The length that all lists have, of which there are `per_row` in a row."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    different = lengths != lengths[0]
    if different.any():
        first = int(np.argmax(different))
        raise DataError(
            f"{where} has lists of different lengths, first at row {first // per_row} "
            f"({lengths[first]} instead of {lengths[0]}); pad them first."
        )
    if lengths[0] == 0:
        raise DataError(f"{where} holds empty lists ({len(lists)} rows).")
    return int(lengths[0])
