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
    """One process among those that share a run. Each call is made by all of them, in one order.

    rank: which of them, from 0; 0 is the one that speaks and writes.
    size: how many there are. local: which of those on this machine.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def local(self) -> int: ...

    def sum(self, own: Tensor) -> Tensor:
        """The sum over ranks, the same bits on all of them; `own` may be overwritten with it."""
        ...

    def join(self, own: Tensor, count: int) -> Tensor:
        """Every rank's share put together along the last dimension, bit for bit.

        own: shape (..., k), k being the length of `own_share` of `count`; gives (..., count).
        """
        ...

    def same(self, own: Tensor) -> Tensor:
        """What rank 0 has; `own` may be overwritten with it."""
        ...


@dataclass(frozen=True)
class Alone:
    """The one process of a run that nobody shares: everything is its own."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def sum(self, own: Tensor) -> Tensor:
        return own

    def join(self, own: Tensor, count: int) -> Tensor:
        assert own.shape[-1] == count
        return own

    def same(self, own: Tensor) -> Tensor:
        return own


ALONE = Alone()


def share(count: int, rank: int, size: int) -> slice:
    """One rank's part of `count` things in a row: as even as can be, the first have one more."""
    each, over = divmod(count, size)
    start = rank * each + min(rank, over)
    return slice(start, start + each + (rank < over))


def own_share(ranks: Ranks, count: int) -> slice:
    """This rank's part of `count` things, possibly none."""
    return share(count, ranks.rank, ranks.size)


def everywhere(ranks: Ranks, holds: bool) -> bool:
    """Whether something holds on every rank. Nobody goes on before all have said so."""
    return int(ranks.sum(torch.tensor(int(not holds)))) == 0


def agreed(ranks: Ranks, value: float) -> float:
    """Rank 0's number, for what is measured and then decided by."""
    return float(ranks.same(torch.tensor(value, dtype=torch.float64)))


def require_same(ranks: Ranks, what: str, text: str) -> None:
    """Raise UserError unless a text is the same on every rank."""
    digest = hashlib.blake2b(text.encode(), digest_size=32).digest()
    own = torch.tensor(list(digest))
    if not everywhere(ranks, torch.equal(ranks.same(own.clone()), own)):
        raise UserError(
            f"the {ranks.size} processes do not have the same {what}; give them the same."
        )
