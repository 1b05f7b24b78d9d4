"""Where the rows of a step stand that several processes have."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curate.datasets import BatchExamples
from curate.errors import DataError, UserError
from curate.influence import Target
from curate.integrations import spread as module
from curate.integrations.options import Options
from curate.integrations.spread import (
    Spread,
    common,
    offered,
    require_same_state,
    require_same_targets,
)
from curate.rules import State
from curate.runtime.ranks import ALONE
from curate.runtime.ranks.base import Alone
from curate.trajectory import Step, Task

TWO = Spread([[3, 2, 1], [2, 2, 2]], together=2, rank=1)


def test_rows_stand_rank_by_rank_and_batches_go_across() -> None:
    assert len(TWO) == 2
    assert [TWO.held(k) for k in range(2)] == [(5, 4), (1, 2)]
    assert [(p.rank, p.number, p.rows) for p in TWO.pieces(0)] == [
        (0, 0, slice(0, 3)),
        (0, 1, slice(3, 5)),
        (1, 0, slice(5, 7)),
        (1, 1, slice(7, 9)),
    ]
    assert [at.tolist() for at in TWO.batches(0)] == [[0, 1, 2, 5, 6], [3, 4, 7, 8]]
    assert [at.tolist() for at in TWO.own_positions()] == [[5, 6], [7, 8], [10, 11]]
    assert [at.tolist() for at in TWO.all_positions()] == [
        [0, 1, 2, 5, 6],
        [3, 4, 7, 8],
        [9, 10, 11],
    ]
    columns = [["abc", "de", "f"], ["gh", "ij", "kl"]]
    letters = TWO.in_order([[list(part) for part in rank] for rank in columns])
    assert "".join(letters) == "abcdeghijfkl"


def test_a_rank_computes_the_rows_that_it_holds() -> None:
    step = Step(torch.arange(9), torch.ones(9), (0.1,), 0, cuts=(3, 5, 7), held=(5, 4))
    task: Any = Task(None, None, None, Alone(rank=1, size=2))  # type: ignore[arg-type]
    assert task.chunks(step) == [slice(5, 7), slice(7, 9)]
    kept = step.keep(torch.tensor([0, 4, 5, 8]))
    assert kept.held == (2, 2)
    assert task.chunks(kept) == [slice(2, 3), slice(3, 4)]
    assert step.keep(torch.tensor([1, 2])).held == (2, 0)
    assert task.chunks(step.keep(torch.tensor([1, 2]))) == []


@dataclass(frozen=True)
class Other(Alone):
    """One of two ranks, the other of which says the same but for what a test puts in its place."""


def told(monkeypatch: pytest.MonkeyPatch, other: Any) -> Other:
    monkeypatch.setattr(module, "exchanged", lambda _, value: [value, other])
    return Other(rank=0, size=2)


def test_windows_are_as_long_as_all_have_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert common([1, 2, 3], 2, ALONE) == ([1, 2, 3], None)
    assert common([], 2, ALONE) == ([], ())
    assert common([1, 2, 3], 2, told(monkeypatch, 3)) == ([1, 2, 3], None)
    assert common([1, 2, 3, 4], 2, told(monkeypatch, 3)) == ([1, 2], [3, 4])
    assert common([1, 2, 3], 2, told(monkeypatch, 4)) == ([1, 2], [3])
    assert common([1], 1, told(monkeypatch, 0)) == ([], [1])


def test_what_decides_is_read_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [{"x": torch.zeros(2), "y": torch.tensor([1, 2])}]
    options = Options(label="y", keep=0.5)
    window = offered(batches, options, 1, ALONE)
    assert window.labels is not None
    assert window.labels.tolist() == [1, 2]
    assert window.groups is None
    assert window.rows is None
    other = {"sizes": [1], "label": [[7]], "group_by": None, "row": None}
    both = offered(batches, options, 1, told(monkeypatch, other))
    assert both.labels is not None
    assert both.labels.tolist() == [1, 2, 7]
    assert [positions.tolist() for positions in both.examples.positions()] == [[0, 1]]


def test_rows_of_the_log_are_integers(tmp_path: Any) -> None:
    batch = {"x": torch.zeros(2), "row": torch.tensor([0.5, 1.0])}
    with pytest.raises(DataError, match="row must give integers"):
        offered([batch], Options(row="row", log=tmp_path, keep=0.5), 1, ALONE)
    offered([batch], Options(row="row", keep=0.5), 1, ALONE)  # nobody reads it


class First(Alone):
    """One of two ranks, the first of which has all zeros."""

    def sum(self, part: Tensor) -> Tensor:
        return part

    def same(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor)


def test_other_targets_are_refused() -> None:
    targets = [Target("t", BatchExamples([torch.zeros(3)]))]
    require_same_targets(targets, ALONE)
    with pytest.raises(UserError, match="the 2 processes do not have the same targets"):
        require_same_targets(targets, First(rank=1, size=2))


def test_another_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(torch.ones(4), {"m": torch.zeros(4)}, 3)
    require_same_state(state, ALONE)
    require_same_state(state, told(monkeypatch, [3.0, 2.0 + 1e-6, 0.0]))
    for other in ([4.0, 2.0, 0.0], [3.0, 2.1, 0.0], [3.0, 2.0, 0.1]):
        with pytest.raises(UserError, match="do not have the same weights and optimizer state"):
            require_same_state(state, told(monkeypatch, other))


def test_positions_need_not_be_end_to_end() -> None:
    examples = BatchExamples([torch.arange(3), torch.arange(10, 12)], [4, 9])
    assert [rows.tolist() for rows in examples.positions()] == [[4, 5, 6], [9, 10]]
    assert examples.batch(torch.tensor([10]), torch.device("cpu")).tolist() == [11]
    assert np.array_equal(examples.batch(torch.arange(4, 7), torch.device("cpu")), np.arange(3))
