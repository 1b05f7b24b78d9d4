"""Shares of what ranks divide, and the one process that shares with nobody."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from curate.errors import UserError
from curate.rules import State
from curate.runtime.ranks import ALONE, agreed, everywhere, own_share, require_same, share
from curate.runtime.ranks.base import Alone
from curate.trajectory import shard_bytes


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
def test_shares_are_even_and_leave_nothing_out(count: int, size: int) -> None:
    shares = [share(count, rank, size) for rank in range(size)]
    assert [i for part in shares for i in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


class Second(Alone):
    """One of two ranks, the first of which has all zeros."""

    def sum(self, part: Tensor) -> Tensor:
        return part

    def same(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor)


SECOND = Second(rank=1, size=2)


def test_one_process_agrees_with_itself() -> None:
    require_same(ALONE, "anything", "text")
    assert agreed(ALONE, 0.1) == 0.1
    assert everywhere(ALONE, True)
    assert not everywhere(ALONE, False)
    part = torch.arange(3)
    assert torch.equal(ALONE.join(part, [3]), part)


def test_the_first_rank_decides_and_another_text_is_refused() -> None:
    assert agreed(SECOND, 0.1) == 0
    with pytest.raises(UserError, match="the 2 processes do not have the same recipe; give them"):
        require_same(SECOND, "recipe", "text")
    assert own_share(SECOND, 5) == slice(3, 5)


def test_bytes_of_a_share_are_those_of_the_largest() -> None:
    @dataclass(frozen=True)
    class Three:
        rank: int = 0
        size: int = 3
        local: int = 0

    state = State(torch.zeros(7), {"one": torch.zeros(1), "none": torch.zeros(0)}, 0)
    assert shard_bytes(state, ALONE) == state.nbytes() == 32
    assert shard_bytes(state, Three()) == 4 * (3 + 1)  # type: ignore[arg-type]
