"""What ranks are: the processes of one run, seen from one of them.

Every rank goes through the same steps and takes the same decisions. What is large
is divided: each has its share of the rows of every step, and of the states that
are kept. What one rank alone would find in a sum of gradients, they find together.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from curate.errors import UserError


class Ranks(Protocol):
    """One of the processes that share a run. All of them make the same calls in the same order.

    rank: its number, from 0; 0 is the one that speaks and writes.
    size: how many processes there are. local: its number among those on this machine.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def local(self) -> int: ...

    def sum(self, part: Tensor) -> Tensor:
        """The sum over ranks, the same bits on all of them; `part` may be overwritten with it."""
        ...

    def join(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        """Every rank's part put together along the last dimension, bit for bit.

        part: shape (..., k), k being this rank's own of `lengths`; gives (..., their sum).
        """
        ...

    def same(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor; `tensor` may be overwritten with it."""
        ...


@dataclass(frozen=True)
class Alone:
    """The one process of a run that is not shared."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def sum(self, part: Tensor) -> Tensor:
        return part

    def join(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        assert [part.shape[-1]] == [*lengths]
        return part

    def same(self, tensor: Tensor) -> Tensor:
        return tensor


ALONE = Alone()


def share(count: int, rank: int, size: int) -> slice:
    """One rank's part of `count` things in a row: as even as possible, the first have one more."""
    length, over = divmod(count, size)
    start = rank * length + min(rank, over)
    return slice(start, start + length + (rank < over))


def own_share(ranks: Ranks, count: int) -> slice:
    """This rank's part of `count` things, possibly none."""
    return share(count, ranks.rank, ranks.size)


def shares(ranks: Ranks, count: int) -> list[int]:
    """How many of `count` things every rank has as its `own_share`."""
    parts = (share(count, rank, ranks.size) for rank in range(ranks.size))
    return [part.stop - part.start for part in parts]


def everywhere(ranks: Ranks, holds: bool) -> bool:
    """Whether something holds on every rank. Waits for all of them."""
    return int(ranks.sum(torch.tensor(int(not holds)))) == 0


def agreed(ranks: Ranks, value: float) -> float:
    """Rank 0's number, for decisions by what is measured."""
    return float(ranks.same(torch.tensor(value, dtype=torch.float64)))


def exchanged(ranks: Ranks, value: Any) -> list[Any]:
    """Every rank's value, by rank; arrays come as lists, and the rest is what JSON holds."""
    if ranks.size == 1:
        return [value]
    written = json.dumps(value, default=lambda array: array.tolist()).encode()
    counts = torch.zeros(ranks.size, dtype=torch.int64)
    counts[ranks.rank] = len(written)
    lengths = ranks.sum(counts).tolist()
    parts = ranks.join(torch.frombuffer(bytearray(written), dtype=torch.uint8), lengths)
    return [json.loads(part.numpy().tobytes()) for part in parts.split(lengths)]


def require_same(ranks: Ranks, what: str, text: str) -> None:
    """Raise UserError unless a text is the same on every rank."""
    digest = torch.tensor(list(hashlib.blake2b(text.encode(), digest_size=32).digest()))
    if not everywhere(ranks, torch.equal(ranks.same(digest.clone()), digest)):
        raise UserError(
            f"the {ranks.size} processes do not have the same {what}; give them the same."
        )
