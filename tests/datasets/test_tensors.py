"""Tensors as long as the data: the same in memory and in files, whole and in pieces."""

import pytest
import torch

from curate.datasets import tensors
from curate.datasets.tensors import counted, joined, large_tensor, parts, picked
from curate.runtime import large


@pytest.fixture(params=["small", "large"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as they are, once so that what is small goes the way of what is large."""
    if request.param == "large":
        monkeypatch.setattr(large, "SMALL", 0)
        monkeypatch.setattr(tensors, "PIECE", 20)
        monkeypatch.setattr(tensors, "FAR", 1)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
)
def test_rows_are_picked_and_joined(dtype: torch.dtype) -> None:
    one, other = ((torch.rand(n, 3, 2) * 9).to(dtype) for n in (11, 7))
    positions = torch.randperm(11)[:8]
    assert torch.equal(picked(one, positions), one[positions])
    assert torch.equal(picked(one, positions.int()), one[positions])
    assert torch.equal(joined(one, other), torch.cat([one, other]))
    assert large_tensor((2, 5), dtype).tolist() == torch.zeros(2, 5, dtype=dtype).tolist()


@pytest.mark.usefixtures("sizes")
def test_what_is_empty_stays_so() -> None:
    empty = torch.zeros(0, 3)
    assert picked(empty, torch.arange(0)).shape == (0, 3)
    assert joined(empty, torch.ones(2, 3)).tolist() == torch.ones(2, 3).tolist()
    assert counted(0).tolist() == []


@pytest.mark.usefixtures("sizes")
def test_positions_are_counted() -> None:
    assert torch.equal(counted(23), torch.arange(23))


def test_parts_are_all_rows_a_few_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE", 20)
    rows = torch.zeros(7, 2)
    assert [(part.start, part.stop) for part in parts(rows)] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert [part.stop for part in parts(torch.zeros(3, 100))] == [1, 2, 3]
