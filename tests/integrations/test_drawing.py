"""Batches drawn ahead hold what they held when they were drawn."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from curate.integrations.drawing import Drawing


def fresh(count: int) -> Iterator[Any]:
    for k in range(count):
        yield {"x": torch.full((2,), float(k)), "names": np.array([k, k])}


def reusing(count: int) -> Iterator[Any]:
    """The same tensor for all batches, as pinned buffers are used."""
    x, names = torch.zeros(2), np.zeros(2)
    for k in range(count):
        x.fill_(k)
        names[:] = k
        yield {"x": x, "names": names}


def same_dictionary(count: int) -> Iterator[Any]:
    batch: dict[str, Any] = {}
    for k in range(count):
        batch |= {"x": torch.full((2,), float(k)), "names": np.array([k, k])}
        yield batch


def in_turn(count: int) -> Iterator[Any]:
    """Two buffers, one filled while the other is used."""
    buffers = [torch.zeros(2), torch.zeros(2)]
    for k in range(count):
        buffers[k % 2].fill_(k)
        yield {"x": buffers[k % 2], "names": np.array([k, k])}


def test_whatever_the_loader_does_with_its_memory() -> None:
    for source in (fresh, reusing, same_dictionary, in_turn):
        drawing, batches = Drawing(), source(9)
        for window in ([0, 1, 2], [3, 4, 5], [6, 7, 8]):
            drawn = drawing.batches(batches, 3)
            assert [batch["x"].tolist() for batch in drawn] == [[k, k] for k in window]
            assert [batch["names"].tolist() for batch in drawn] == [[k, k] for k in window]
        assert drawing.batches(batches, 3) == []


def test_a_loader_that_makes_its_batches_anew_keeps_them() -> None:
    given = list(fresh(6))
    drawing = Drawing()
    assert all(one is other for one, other in zip(drawing.batches(iter(given)), given, strict=True))
    assert drawing.batches(iter(given), 1)[0] is given[0]


def test_what_cannot_be_compared_goes_through() -> None:
    given = [{"x": torch.eye(3).to_sparse(), "y": torch.eye(3), "name": "a"} for _ in range(2)]
    drawn = Drawing().batches(iter(given), 2)
    assert all(one is other for one, other in zip(drawn, given, strict=True))
