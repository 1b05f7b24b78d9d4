"""Rows in Arrow: some of a dataset's, and those of a file, whose pages are let go of."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.features.features import require_storage_embed
from datasets.table import embed_table_storage
from numpy.typing import NDArray

from curate.runtime.large import mapped

EMBEDDED = 64
"""Rows whose files are put in at a time."""
LOCAL = (
    {"remote_files": False} if "remote_files" in signature(embed_table_storage).parameters else {}
)
SPARSE = 8
"""Rows between two that are wanted, on average, above which each is looked up by itself."""


def read_mapped(path: Path | str) -> pa.Table:
    """The rows of a file in Arrow's stream format, without a copy."""
    with open(path, "rb") as file:
        return pa.ipc.open_stream(pa.py_buffer(mapped(file))).read_all()


def take(table: Dataset, places: NDArray[Any]) -> pa.Table:
    """The rows at some places, shape (n,), n > 0, as Arrow.

    Where they are close to one another and ascend, they are cut from the data in one piece: the
    library's own way takes them one by one.
    """
    where = places
    if table._indices is not None:
        low, high = int(places.min()), int(places.max()) + 1
        near = table._indices.slice(low, high - low).column(0).to_numpy()
        where = near[places - low].astype(np.int64)  # unsigned ones never descend
    low, high = int(where.min()), int(where.max()) + 1
    if high - low > SPARSE * len(where):
        return table.with_format("arrow")[places]
    part = table.data.slice(low, high - low).table.select(table.column_names)
    if high - low == len(where) and np.all(np.diff(where) > 0):
        return part
    return part.take(pa.array(where - low))


def brings_files(features: Mapping[str, Any]) -> bool:
    """Whether rows with these features may name files, such as pictures."""
    return any(require_storage_embed(feature) for feature in features.values())


def embedded(table: pa.Table) -> pa.Table:
    """Rows with what is in the files that they name; addresses on a network stay what they are."""
    found: pa.Table = embed_table_storage(table, **LOCAL)
    return found
