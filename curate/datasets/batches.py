"""Batches of any structure: how long they are, parts of them, where they live."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curate.errors import DataError


def batch_length(batch: Any) -> int:
    """Examples in a batch: the first dimension of the first tensor in it.

    Raises:
        DataError: there is no tensor with a batch dimension.
    """
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise DataError(f"a batch of type {type(batch).__name__} holds no tensor to count examples by.")


def take(batch: Any, positions: Tensor) -> Any:
    """Some examples of a batch, by position, shape (k,), in a batch of the same structure.

    Tensors and lists as long as the batch are indexed; whatever else is in it stays.
    """
    length, chosen = batch_length(batch), positions.tolist()

    def pick(leaf: Any) -> Any:
        if _runs_along(leaf, length):
            return leaf[positions.to(leaf.device)]
        if isinstance(leaf, list) and len(leaf) == length:
            return [leaf[i] for i in chosen]
        return leaf

    return map_leaves(batch, pick)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on `device`."""
    return map_leaves(batch, lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)


def mapped_tensors(batch: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """A batch's tensors that run along its examples, and the way back from others like them."""
    length = batch_length(batch)

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        following = iter(tensors)
        return map_leaves(
            batch, lambda leaf: next(following) if _runs_along(leaf, length) else leaf
        )

    return [leaf for leaf in leaves(batch) if _runs_along(leaf, length)], rebuild


def _runs_along(leaf: Any, length: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == length


def leaves(batch: Any) -> Iterator[Any]:
    """Everything in a batch that is not a container of tensors."""
    parts, _ = _opened(batch)
    if parts is None:
        yield batch
    else:
        for part in parts:
            yield from leaves(part)


def map_leaves(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A batch of the same structure with every leaf changed, see `leaves`."""
    parts, rebuild = _opened(batch)
    return change(batch) if parts is None else rebuild([map_leaves(part, change) for part in parts])


def _opened(batch: Any) -> tuple[list[Any] | None, Callable[[list[Any]], Any]]:
    """The parts of a container (None for a leaf), and the way back from changed parts."""
    kind: Any = type(batch)
    if isinstance(batch, Mapping):
        return list(batch.values()), lambda parts: kind(dict(zip(batch, parts, strict=True)))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        return [getattr(batch, name) for name in names], lambda parts: dataclasses.replace(
            batch, **dict(zip(names, parts, strict=True))
        )
    if isinstance(batch, tuple):
        return list(batch), (lambda parts: kind(*parts)) if hasattr(batch, "_fields") else tuple
    if isinstance(batch, list) and any(isinstance(part, Tensor) for part in batch):
        return batch, list
    return None, list


@dataclasses.dataclass(frozen=True)
class BatchExamples:
    """Batches of any structure as examples: position = place in the batches, end to end.

    Examples are only ever taken together from one batch: what was collated
    apart (padded to different lengths) is not collated again.
    """

    batches: Sequence[Any]

    def _lengths(self) -> list[int]:
        return [batch_length(batch) for batch in self.batches]

    def __len__(self) -> int:
        return sum(self._lengths())

    def positions(self) -> list[Tensor]:
        """The positions of each batch's examples."""
        return list(torch.arange(len(self)).split(self._lengths()))

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All positions, at most `size` of one batch at a time."""
        for positions in self.positions():
            yield from positions.split(size)

    def batch(self, rows: Tensor, device: torch.device) -> Any:
        """The examples at `rows`, shape (n,), all from one batch."""
        for batch, positions in zip(self.batches, self.positions(), strict=True):
            if positions[0] <= rows[0] <= positions[-1]:
                whole = len(rows) == len(positions) and torch.equal(rows, positions)
                return to_device(batch if whole else take(batch, rows - positions[0]), device)
        raise IndexError(f"row {int(rows[0])} is in none of the batches")

    def source_row(self, position: int) -> int:
        """The position itself: a stream has no other."""
        return position
