"""What ranks are: the processes of one run, seen from one of them.

Every rank goes through the same steps and takes the same decisions. What is large
is divided: each has its share of the rows of every step, and of the states that
are kept. What one rank alone would find in a sum of gradients, they find together.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

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

    def join(self, part: Tensor, count: int) -> Tensor:
        """Every rank's share put together along the last dimension, bit for bit.

        part: shape (..., k), k being the length of `own_share` of `count`; gives (..., count).
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

    def join(self, part: Tensor, count: int) -> Tensor:
        assert part.shape[-1] == count
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


def everywhere(ranks: Ranks, holds: bool) -> bool:
    """Whether something holds on every rank. Waits for all of them."""
    return int(ranks.sum(torch.tensor(int(not holds)))) == 0


def agreed(ranks: Ranks, value: float) -> float:
    """Rank 0's number, for decisions by what is measured."""
    return float(ranks.same(torch.tensor(value, dtype=torch.float64)))


def require_same(ranks: Ranks, what: str, text: str) -> None:
    """Raise UserError unless a text is the same on every rank."""
    digest = torch.tensor(list(hashlib.blake2b(text.encode(), digest_size=32).digest()))
    if not everywhere(ranks, torch.equal(ranks.same(digest.clone()), digest)):
        raise UserError(
            f"the {ranks.size} processes do not have the same {what}; give them the same."
        )
