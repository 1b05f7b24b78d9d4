"""Batches of any structure: how long they are, parts of them, where they live."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curate.errors import DataError

Leaf = Callable[[Any], Any]


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
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == length:
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

    def along(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == length

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        given = iter(tensors)
        return map_leaves(batch, lambda leaf: next(given) if along(leaf) else leaf)

    return [leaf for leaf in leaves(batch) if along(leaf)], rebuild


def leaves(batch: Any) -> Iterator[Any]:
    """Everything in a batch that is not a container of tensors."""
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name))
    elif isinstance(batch, tuple) or _holds_tensors(batch):
        for value in batch:
            yield from leaves(value)
    else:
        yield batch


def map_leaves(batch: Any, change: Leaf) -> Any:
    """A batch of the same structure with every leaf changed, see `leaves`."""
    if isinstance(batch, Mapping):
        changed = {key: map_leaves(value, change) for key, value in batch.items()}
        return changed if type(batch) is dict else type(batch)(changed)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(
            batch,
            **{
                f.name: map_leaves(getattr(batch, f.name), change)
                for f in dataclasses.fields(batch)
            },
        )
    if isinstance(batch, tuple):
        parts = [map_leaves(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if _holds_tensors(batch):
        return [map_leaves(value, change) for value in batch]
    return change(batch)


def _holds_tensors(batch: Any) -> bool:
    return isinstance(batch, list) and any(isinstance(value, Tensor) for value in batch)


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
        for batch, own in zip(self.batches, self.positions(), strict=True):
            if own[0] <= rows[0] <= own[-1]:
                within = rows - own[0]
                whole = len(within) == len(own) and torch.equal(within, torch.arange(len(own)))
                return to_device(batch if whole else take(batch, within), device)
        raise IndexError(f"row {int(rows[0])} is in none of the batches")

    def source_row(self, position: int) -> int:
        """The position itself: a stream has no other."""
        return position
