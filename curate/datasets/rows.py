"""The rows of a dataset in Arrow, some at a time, and some of the rows without a copy."""

import hashlib
from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor

from curate.datasets.tensors import PIECE
from curate.runtime.large import large, pieces
from curate.runtime.tables import take

MOST = 2**15
"""Rows that are taken together, where they are short."""


def batches(data: Dataset) -> Iterator[tuple[slice, pa.Table]]:
    """All rows in order, about `PIECE` bytes at a time, and which they are."""
    for part in pieces(len(data), rows_together(data)):
        yield part, take(data, np.arange(part.start, part.stop))


def rows_together(data: Dataset) -> int:
    """How many rows have about `PIECE` bytes."""
    return int(np.clip(PIECE * len(data.data) // max(1, data.data.nbytes), 1, MOST))


def pick_rows(data: Dataset, rows: Tensor) -> Dataset:
    """Some rows of a dataset of which none were picked before, by ascending position, (n,)."""
    assert data._indices is None
    if len(rows) == len(data):
        return data
    places = large(len(rows), np.uint64)
    digest = hashlib.blake2b(str(data._fingerprint).encode(), digest_size=8)
    for part in pieces(len(rows)):
        places[part] = rows[part].numpy()
        digest.update(places[part].data)
    column = pa.Array.from_buffers(pa.uint64(), len(rows), [None, pa.py_buffer(places)])
    indices = datasets.table.InMemoryTable(pa.table({"indices": column}))
    return Dataset(data.data, info=data.info, indices_table=indices, fingerprint=digest.hexdigest())
