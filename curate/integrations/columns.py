"""One value per example, read from a loop's batches as an option says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from curate.datasets import batch_length
from curate.errors import DataError
from curate.integrations.options import Read
from curate.selection import Array


def read_columns(read: Read | None, batches: Sequence[Any], name: str) -> Array | None:
    """The values that a key or a function gives for all batches, shape (N,)."""
    if read is None:
        return None
    return np.concatenate([read_column(read, batch, name) for batch in batches])


def read_column(read: Read, batch: Any, name: str) -> Array:
    """The values that a key of a batch, or a function of it, gives its examples, shape (n,).

    Raises:
        DataError: there is no such key, or not one value per example; `name` is the option's.
    """
    if isinstance(read, str) and not (isinstance(batch, Mapping) and read in batch):
        keys = f"; it has {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise DataError(
            f"{name} is {read!r}, but a batch of type {type(batch).__name__} has no such key{keys}."
        )
    values = batch[read] if isinstance(read, str) else read(batch)
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    count = batch_length(batch)
    if array.shape != (count,):
        raise DataError(
            f"{name} must give one value per example, shape ({count},), but got {array.shape}."
        )
    return array


class WithColumns:
    """A collator whose batches have some columns of their rows, though it leaves them out."""

    def __init__(self, collate: Any, columns: Sequence[str]) -> None:
        self._collate, self._columns = collate, columns

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not set yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self._collate, name)

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self._collate(rows)
        for name in self._columns:
            if name not in batch and all(name in row for row in rows):
                batch[name] = default_collate([row[name] for row in rows])
        return batch
