"""Labels that somebody corrected, by row, in place of those that were read."""

from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets.columns import holds_strings, refuse_nulls, require_columns
from curate.datasets.labels import Classes, cells, read_classes, with_label_columns
from curate.datasets.tensors import picked
from curate.errors import DataError

ROW = "row"
"""The column that says which row of the source a correction is of, as in scores.parquet."""


class Corrected(NamedTuple):
    """Data with corrected labels.

    ids: of the classes that the labels now say, shape (N,). noisy: where a label is planted noise
    still, shape (N,), or None. changed: how many corrections are other than what was read.
    """

    data: Dataset
    ids: Tensor
    noisy: Tensor | None
    changed: int


def read_corrections(
    data: Dataset, name: str, source: str, classes: Classes
) -> tuple[Tensor, Tensor]:
    """Rows and the classes that they are to have, by ascending row, shapes (n,), int64.

    Raises:
        DataError: a column is missing; a row is none or there twice; a label is no class.
    """
    require_columns(data, [ROW, name], source)
    refuse_nulls(data, ROW, source)
    rows = data.select_columns([ROW]).with_format("numpy")[:][ROW]
    numbers = rows.ndim == 1 and rows.dtype.kind in "iuf"
    if not numbers or not ((rows >= 0) & (rows < 2**53) & (rows == np.floor(rows))).all():
        raise DataError(
            f"{source}: column {ROW} holds {data.features[ROW]}; it must have the numbers of rows, "
            "as in scores.parquet."
        )
    if classes.names is None and holds_strings(data.features[name]):
        data = _as_numbers(data, name)  # as annotation tools write what they chose from
    order = np.argsort(rows, kind="stable")
    ordered = rows[order].astype(np.int64)
    if (twice := np.flatnonzero(np.diff(ordered) == 0)).size:
        raise DataError(f"{source}: row {ordered[twice[0]]} is corrected twice; keep one of them.")
    ids = read_classes(data, name, source, classes)
    return torch.from_numpy(ordered), ids[torch.from_numpy(order)]


def correct_labels(
    data: Dataset,
    name: str,
    classes: Classes,
    labels: tuple[Tensor, Tensor | None],
    positions: Tensor,
    ids: Tensor,
) -> Corrected:
    """Give some rows other labels.

    The column `name` holds the labels to train on, `<name>_read` (as before) is added; where noise
    was planted, `<name>_noisy` says what is left of it.

    Args:
        labels: the classes of all rows, shape (N,), and where they are planted noise, if any is.
        positions, ids: which are corrected, ascending, and their classes, shapes (n,).

    Raises:
        DataError: there is a column of that name.
    """
    before, noisy = labels
    kept = f"{name}_read"
    if kept in data.column_names:
        raise DataError(f"data.relabelled: adds column {kept}, which is there already.")
    changed = picked(before, positions) != ids
    now = torch.from_numpy(before.numpy().copy())
    now[positions] = ids
    if noisy is not None:
        clean = read_classes(data.select(positions.numpy()), f"{name}_clean", "data.train", classes)
        noisy = noisy.clone()
        noisy[positions] = ids != clean

    def columns(part: slice, table: pa.Table) -> dict[str, pa.Array]:
        old = table.column(name)
        new = pa.array(cells(data.features[name], classes, now[part].numpy()), old.type)
        marks = {} if noisy is None else {f"{name}_noisy": pa.array(noisy[part].numpy())}
        return {name: new, **marks, kept: old}

    data = with_label_columns(data, columns, {kept: data.features[name]})
    return Corrected(data, now, noisy, int(changed.sum()))


def _as_numbers(data: Dataset, name: str) -> Dataset:
    """A column of numbers that are written as text as numbers; as it is if one is none."""
    try:
        return data.cast_column(name, datasets.Value("int64"))
    except (pa.ArrowInvalid, ValueError):
        return data
