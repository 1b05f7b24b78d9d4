"""A window's batches, drawn ahead of the loop from whatever loader it has."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.datasets import leaves, map_leaves


class Drawing:
    """Draws several batches at a time, even from a loader that fills the same memory again."""

    def __init__(self) -> None:
        self._reuses: bool | None = None  # whether the loader does; None before it was seen

    def batches(self, source: Iterator[Any], count: int | None = None) -> list[Any]:
        """The next batches, at most `count`, each with what it held when it was drawn.

        The first of them that are drawn together are copied, to see whether others overwrite them;
        later ones only where that was so. What workers hand over in shared memory is copied, too:
        it holds a file open per tensor, and a window of them is more than a process may have.
        """
        if count == 1:
            return list(islice(source, 1))
        drawn, copies = list[Any](), list[Any]()
        for batch in islice(source, count):
            shared = any(map(_is_shared, leaves(batch)))
            drawn.append(map_leaves(batch, _copied) if shared else batch)
            if self._reuses is not False:
                copies.append(map_leaves(batch, _copied))
        if self._reuses is None and len(drawn) > 1:
            self._reuses = any(map(_differ, drawn, copies))
        return copies if self._reuses else drawn


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if isinstance(leaf, list | tuple) and not hasattr(leaf, "_fields"):
        return type(leaf)(map(_copied, leaf))
    if isinstance(leaf, dict):
        return {key: _copied(value) for key, value in leaf.items()}
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _is_shared(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        dense = leaf.layout == torch.strided and not leaf.is_nested
        return dense and leaf.device.type == "cpu" and leaf.is_shared()
    parts = leaf.values() if isinstance(leaf, dict) else leaf
    return isinstance(leaf, list | tuple | dict) and any(map(_is_shared, parts))


def _differ(batch: Any, copy: Any) -> bool:
    return any(map(_changed, leaves(batch), leaves(copy)))


def _changed(one: Any, copy: Any) -> bool:
    if isinstance(one, Tensor):  # a sparse or nested one is refused where batches are cut
        return one.layout == torch.strided and not one.is_nested and not torch.equal(one, copy)
    if isinstance(one, list | tuple):
        return len(one) != len(copy) or any(map(_changed, one, copy))
    if isinstance(one, dict):
        return one.keys() != copy.keys() or any(_changed(one[key], copy[key]) for key in one)
    return isinstance(one, np.ndarray) and not np.array_equal(one, copy)
