"""The steps of a run: the same whether they are made at once or when they are asked for."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from curate.pipeline import steps as module
from curate.pipeline.steps import planned
from curate.runtime import large
from curate.trajectory import Step


def one_by_one(pool: Tensor, size: int, total: int, seed: int) -> Iterator[Step]:
    """The oracle: epochs drawn in one go, and a seed after each batch."""
    generator, t = torch.Generator().manual_seed(seed), 0
    while True:
        for rows in pool[torch.randperm(len(pool), generator=generator)].split(size):
            own = int(torch.randint(2**62, (), generator=generator))
            yield Step(rows, torch.ones(len(rows)), (0.1 * t,), own, 3)
            t += 1
            if t == total:
                return


def same(one: Step, other: Step) -> bool:
    plain = [
        (s.rows.tolist(), s.weights.tolist(), s.lrs, s.seed, s.micro_batch) for s in (one, other)
    ]
    return plain[0] == plain[1] and one.rows.dtype == other.rows.dtype


@pytest.mark.parametrize(
    ("count", "size", "total"), [(10, 4, 8), (5, 8, 7), (1, 1, 3), (0, 4, 2), (9, 3, 40)]
)
@pytest.mark.parametrize("together", [1, 20, 2**16])
@pytest.mark.parametrize("small", [0, 2**24])
def test_asked_for_in_any_order_they_are_those_of_one_pass(
    count: int, size: int, total: int, together: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    monkeypatch.setattr(module, "AT_HAND", 2)
    monkeypatch.setattr(large, "SMALL", small)
    pool = torch.arange(count) * 7 + 1
    expected = [*one_by_one(pool, size, total, 5)]
    for rows, own in (
        (pool, expected),
        (count, [*one_by_one(torch.arange(count), size, total, 5)]),
    ):
        found = planned(rows, size, total, 5, lambda t: (0.1 * t,), 3)
        assert len(found) == total
        assert all(same(found[t], own[t]) for t in reversed(range(total)))
        assert all(map(same, found, own))
        assert all(map(same, found[1:][1:], own[2:]))
        assert same(found[-1], own[-1])
        with pytest.raises(IndexError):
            found[total]


def test_a_step_at_hand_is_not_made_again() -> None:
    found = planned(10, 4, 6, 0, lambda _: (1.0,), 0)
    assert found[2:4][1] is found[3]


def test_a_million_steps_take_no_room() -> None:
    found = planned(2**21, 2, 2**20, 0, lambda _: (1.0,), 0)
    assert len(found[5:]) == 2**20 - 5
    assert sorted(row for step in found[:8] for row in step.rows.tolist()) == sorted(
        torch.randperm(2**21, generator=torch.Generator().manual_seed(0))[:16].tolist()
    )
