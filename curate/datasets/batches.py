"""Batches of any structure: how long they are, parts of them, where they live."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curate.errors import DataError


def batch_length(batch: Any) -> int:
    """Examples in a batch: the first dimension of its tensors.

    Raises:
        DataError: there is no tensor with a batch dimension, or one that does not run along the
            examples.
    """
    tensors = {name: x for name, x in named_leaves(batch) if isinstance(x, Tensor) and x.ndim}
    if not tensors:
        raise DataError(
            f"a batch of type {type(batch).__name__} holds no tensor to count examples by."
        )
    for name, x in tensors.items():
        if x.is_nested or x.is_meta or x.layout != torch.strided:
            kind = "nested" if x.is_nested else "meta" if x.is_meta else "sparse"
            raise DataError(
                f"{_called(name)} is a {kind} tensor, which cannot be cut by examples; collate it "
                "dense, and convert it in the model."
            )
    lengths = {name: len(x) for name, x in tensors.items()}
    first = next((name for name, length in lengths.items() if length != 1), None)
    if first is None:
        return 1
    for name, length in lengths.items():
        _require_along(name, length, lengths[first])
    return lengths[first]


def take(batch: Any, positions: Tensor) -> Any:
    """Some examples of a batch, by position, shape (k,), in a batch of the same structure.

    Tensors, arrays, lists and tuples are cut where they are as long as the batch, and lists of
    such column by column; what holds at most one of anything stays.

    Raises:
        DataError: a part has another length, or is of a kind that may hold rows but is not known.
    """
    length, chosen = batch_length(batch), positions.tolist()
    for name, leaf in named_leaves(batch):
        if _is_sequence(leaf):
            if not _are_columns(leaf, length):
                _require_along(name, len(leaf), length)
        elif _may_hold_rows(leaf):
            raise DataError(
                f"{_called(name)} is a {type(leaf).__name__}, which cannot be cut by examples; "
                "make it a tensor, an array or a list."
            )

    def pick(leaf: Any) -> Any:
        if _runs_along(leaf, length):
            return leaf[positions.to(leaf.device)]
        if not _is_sequence(leaf):
            return leaf
        if _are_columns(leaf, length):
            return type(leaf)(pick(column) for column in leaf)
        if len(leaf) != length:
            return leaf
        if isinstance(leaf, np.ndarray):
            return leaf[chosen]
        return type(leaf)(leaf[i] for i in chosen)

    return map_leaves(batch, pick)


def _is_sequence(leaf: Any) -> bool:
    return isinstance(leaf, list | tuple) or (isinstance(leaf, np.ndarray) and leaf.ndim > 0)


def _may_hold_rows(leaf: Any) -> bool:
    """Whether it is neither a tensor nor a constant, but has entries or attributes of its own."""
    if isinstance(leaf, Tensor | str | np.ndarray | np.generic | Enum) or callable(leaf):
        return False
    if hasattr(leaf, "__len__"):
        return len(leaf) > 1
    inside = vars(leaf).values() if hasattr(leaf, "__dict__") else ()
    return any(isinstance(part, Tensor) or _is_sequence(part) for part in inside)


def _are_columns(leaf: Sequence[Any], length: int) -> bool:
    """Whether it holds sequences as long as the batch, as default collation makes of strings.

    Where there are as many as examples, tuples are columns and lists are rows.
    """
    if length == 1 or not isinstance(leaf, list | tuple) or not leaf:
        return False
    kinds = tuple if len(leaf) == length else list | tuple | np.ndarray
    return all(isinstance(part, kinds) and len(part) == length for part in leaf)


def _require_along(name: str, length: int, examples: int) -> None:
    if length not in (0, 1, examples):
        raise DataError(
            f"{_called(name)} has length {length}, but the batch has {examples} examples: what is "
            "in a batch must run along its examples, so that it can be cut with them."
        )


def _called(name: str) -> str:
    return f"part {name} of a batch" if name else "a batch"


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
    return (leaf for _, leaf in named_leaves(batch))


def named_leaves(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves with their names: keys, fields and positions, joined by dots."""
    opened = _opened(batch)
    if opened is None:
        yield name, batch
        return
    for key, part in opened.parts.items():
        yield from named_leaves(part, f"{name}.{key}" if name else str(key))


def map_leaves(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A batch of the same structure with every leaf changed, see `leaves`."""
    opened = _opened(batch)
    if opened is None:
        return change(batch)
    return opened.rebuild([map_leaves(part, change) for part in opened.parts.values()])


class _Opened(NamedTuple):
    """The parts of a container by name, and the way back from changed parts."""

    parts: dict[Any, Any]
    rebuild: Callable[[list[Any]], Any]


def _opened(batch: Any) -> _Opened | None:
    """A container, taken apart; None for a leaf."""
    if isinstance(batch, Tensor):  # as most are: the questions below are slow to ask
        return None
    kind: Any = type(batch)
    if isinstance(batch, Mapping):
        return _Opened(dict(batch), lambda parts: _refilled(batch, parts))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.init}
        return _Opened(fields, lambda parts: _replaced(batch, zip(fields, parts, strict=True)))
    if isinstance(batch, tuple) and (hasattr(batch, "_fields") or _holds_tensors(batch)):
        named = hasattr(batch, "_fields")
        return _Opened(dict(enumerate(batch)), (lambda parts: kind(*parts)) if named else tuple)
    if isinstance(batch, list) and any(isinstance(part, Tensor) for part in batch):
        return _Opened(dict(enumerate(batch)), list)
    return None


def _holds_tensors(parts: Sequence[Any]) -> bool:
    """Whether there is a tensor in it, or a container of tensors."""
    return any(isinstance(part, Tensor) or _opened(part) is not None for part in parts)


def _replaced(batch: Any, fields: Iterable[tuple[str, Any]]) -> Any:
    """A dataclass with other fields; those that it makes itself are made anew."""
    given = dict(fields)
    try:
        made = dataclasses.replace(batch, **given)
        changed = next((name for name in given if getattr(made, name) is not given[name]), None)
        reason: object = f"it changes {changed}"
    except Exception as error:  # whatever the user's own code raises
        changed, reason = "", error
    if changed is not None:
        raise DataError(
            f"a batch of type {type(batch).__name__} cannot be made from its fields ({reason}), so "
            "it cannot be cut; use a dictionary."
        )
    return made


def _refilled(batch: Any, parts: Sequence[Any]) -> Any:
    """A mapping of the same type with other values."""
    made = copy.copy(batch)
    try:
        for key, part in zip(batch, parts, strict=True):
            made[key] = part
    except TypeError as error:
        raise DataError(
            f"a batch of type {type(batch).__name__} cannot be given other values ({error}), so it "
            "cannot be cut; use a dictionary."
        ) from error
    return made


@dataclasses.dataclass(frozen=True)
class BatchExamples:
    """Batches of any structure as examples: position = place in the batches, end to end.

    starts: the position of each batch's first example, where they are not end to end.

    Examples are only ever taken together from one batch: what was collated
    apart (padded to different lengths) is not collated again.
    """

    batches: Sequence[Any]
    starts: Sequence[int] | None = None

    @cached_property
    def _lengths(self) -> list[int]:
        return [batch_length(batch) for batch in self.batches]

    def __len__(self) -> int:
        return sum(self._lengths)

    def positions(self) -> list[Tensor]:
        """The positions of each batch's examples."""
        lengths = self._lengths
        starts = [0, *accumulate(lengths)][:-1] if self.starts is None else self.starts
        return [torch.arange(i, i + n) for i, n in zip(starts, lengths, strict=True)]

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
