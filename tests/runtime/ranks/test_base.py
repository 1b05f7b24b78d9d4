"""Shares of what ranks divide, and the one process that shares with nobody."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from curate.errors import UserError
from curate.rules import State
from curate.runtime.ranks import (
    ALONE,
    agreed,
    everywhere,
    exchanged,
    own_share,
    require_same,
    share,
    shares,
)
from curate.runtime.ranks.base import Alone
from curate.trajectory import shard_bytes


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
def test_shares_are_even_and_leave_nothing_out(count: int, size: int) -> None:
    parts = [share(count, rank, size) for rank in range(size)]
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
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
    assert shares(SECOND, 5) == [3, 2]


def test_what_is_exchanged_comes_by_rank() -> None:
    class Both(Second):
        """The first rank has said 1, and this one something of eight letters."""

        def sum(self, part: Tensor) -> Tensor:
            assert part.tolist() == [0, 8]
            return torch.tensor([1, 8])

        def join(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
            assert [*lengths] == [1, 8]
            return torch.cat([torch.tensor([ord("1")], dtype=torch.uint8), part])

    assert exchanged(ALONE, "alone") == ["alone"]
    assert exchanged(Both(rank=1, size=2), [np.arange(1), 2]) == [1, [[0], 2]]


def test_bytes_of_a_share_are_those_of_the_largest() -> None:
    @dataclass(frozen=True)
    class Three:
        rank: int = 0
        size: int = 3
        local: int = 0

    state = State(torch.zeros(7), {"one": torch.zeros(1), "none": torch.zeros(0)}, 0)
    assert shard_bytes(state, ALONE) == state.nbytes() == 32
    assert shard_bytes(state, Three()) == 4 * (3 + 1)  # type: ignore[arg-type]
