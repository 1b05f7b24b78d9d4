"""Batches of any structure: taken apart, changed and put together the way they were."""

from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import InitVar, dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curate.datasets import BatchExamples, batch_length, leaves, mapped_tensors, take
from curate.datasets.batches import map_leaves, to_device
from curate.errors import DataError

CPU = torch.device("cpu")
Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: Tensor
    name: str


def column(shift: int = 0) -> Tensor:
    return torch.arange(4) + shift


BATCHES: dict[str, Any] = {
    "tensor": column(),
    "dict": {"x": column(), "name": "a"},
    "ordered": OrderedDict(x=column(), y=column(1)),
    "default": defaultdict(list, x=column(), y=column(1)),
    "tuple": (column(), column(1)),
    "named": Pair(column(), column(1)),
    "list": [column(), column(1)],
    "record": Record(column(), "a"),
    "nested": {"pairs": [Pair(column(), {"z": column(1)}), column(2)], "n": 3},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_structure_stays_and_every_leaf_is_seen_once_in_order(batch: Any) -> None:
    seen: list[Any] = []

    def change(leaf: Any) -> Any:
        seen.append(leaf)
        return leaf + 10 if isinstance(leaf, Tensor) else leaf

    changed = map_leaves(batch, change)
    assert type(changed) is type(batch)
    assert [id(leaf) for leaf in seen] == [id(leaf) for leaf in leaves(batch)]
    for before, after in zip(leaves(batch), leaves(changed), strict=True):
        assert torch.equal(after, before + 10) if isinstance(before, Tensor) else after == before


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_tensors_along_the_examples_come_out_and_go_back(batch: Any) -> None:
    assert batch_length(batch) == 4
    tensors, rebuild = mapped_tensors(batch)
    again, _ = mapped_tensors(rebuild([tensor + 1 for tensor in tensors]))
    assert all(torch.equal(a, b + 1) for a, b in zip(again, tensors, strict=True))


def test_what_is_as_long_as_the_batch_is_cut_and_the_rest_stays() -> None:
    texts = ["a", "b", "c", "d"]
    batch = {
        "x": column(),
        "list": texts,
        "tuple": tuple(texts),
        "array": np.array(texts),
        "columns": [tuple(texts), tuple(texts)],
        "rows": [{"boxes": torch.zeros(k, 4)} for k in range(4)],
        "scale": torch.tensor(2.0),
        "mask": torch.ones(1, 7),
        "name": "abcd",
        "empty": [],
    }
    part = take(batch, torch.tensor([2, 0]))
    assert part["x"].tolist() == [2, 0]
    assert part["list"] == ["c", "a"]
    assert part["tuple"] == ("c", "a")
    assert part["array"].tolist() == ["c", "a"]
    assert part["columns"] == [("c", "a"), ("c", "a")]
    assert [len(row["boxes"]) for row in part["rows"]] == [2, 0]
    assert all(part[key] is batch[key] for key in ("scale", "mask", "name", "empty"))


def test_of_two_examples_tuples_are_columns_and_lists_are_rows() -> None:
    x, first = torch.arange(2), torch.tensor([1])
    assert take((x, [("a", "b"), ("c", "d")]), first)[1] == [("b",), ("d",)]
    assert take((x, [["a", "b"], ["c", "d"]]), first)[1] == [["c", "d"]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (torch.arange(3), "part y of a batch has length 3, but the batch has 4 examples"),
        (["a", "b", "c"], "part y of a batch has length 3, but the batch has 4 examples"),
        (np.arange(5), "part y of a batch has length 5, but the batch has 4 examples"),
        ([torch.zeros(3, 9)], "part y.0 of a batch has length 3, but the batch has 4 examples"),
        (torch.eye(4).to_sparse(), "part y of a batch is a sparse tensor"),
        (torch.zeros(4, device="meta"), "part y of a batch is a meta tensor"),
        (deque("abcd"), "part y of a batch is a deque, which cannot be cut"),
        (SimpleNamespace(z=torch.zeros(4)), "part y of a batch is a SimpleNamespace"),
    ],
    ids=["tensor", "list", "array", "images", "sparse", "meta", "deque", "object"],
)
def test_what_does_not_run_along_the_examples_is_refused_by_name(part: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        take({"x": column(), "y": part}, torch.tensor([2, 0]))


def test_what_a_dataclass_makes_itself_is_made_anew() -> None:
    @dataclass
    class Sized:
        x: Tensor
        size: int = field(init=False)

        def __post_init__(self) -> None:
            self.size = len(self.x)

    part = take(Sized(column()), torch.tensor([2, 0]))
    assert (part.x.tolist(), part.size) == ([2, 0], 2)


def test_a_dataclass_that_asks_for_more_than_its_fields_is_refused() -> None:
    @dataclass
    class Scaled:
        x: Tensor
        factor: InitVar[float]

        def __post_init__(self, factor: float) -> None:
            self.x = self.x * factor

    with pytest.raises(DataError, match="a batch of type Scaled cannot be made from its fields"):
        take(Scaled(column(), 2.0), torch.tensor([2, 0]))


def test_a_dataclass_that_changes_its_fields_is_refused() -> None:
    @dataclass
    class Scaled:
        x: Tensor

        def __post_init__(self) -> None:
            self.x = self.x / 2

    with pytest.raises(DataError, match=r"cannot be made from its fields \(it changes x\)"):
        take(Scaled(column()), torch.tensor([2, 0]))


def test_a_batch_without_tensors_has_no_length() -> None:
    with pytest.raises(DataError, match="a batch of type dict holds no tensor to count examples"):
        batch_length({"scale": torch.tensor(2.0), "texts": ["a"]})


def test_every_tensor_is_moved() -> None:
    moved = to_device(BATCHES["nested"], torch.device("meta"))
    assert all(leaf.device.type == "meta" for leaf in leaves(moved) if isinstance(leaf, Tensor))
    assert moved["n"] == 3


class TestBatchExamples:
    batches = (column(), column(10)[:2], column(20)[:3])
    examples = BatchExamples([{"x": x} for x in batches])

    def test_positions_run_through_the_batches(self) -> None:
        assert len(self.examples) == 9
        assert [p.tolist() for p in self.examples.positions()] == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
        assert [c.tolist() for c in self.examples.chunks(3)] == [[0, 1, 2], [3], [4, 5], [6, 7, 8]]
        assert self.examples.source_row(5) == 5

    @pytest.mark.parametrize(
        ("rows", "values"),
        [([0, 1, 2, 3], [0, 1, 2, 3]), ([5, 4], [11, 10]), ([7], [21]), ([8, 8, 6], [22, 22, 20])],
    )
    def test_rows_of_one_batch_are_taken_together(self, rows: list[int], values: list[int]) -> None:
        assert self.examples.batch(torch.tensor(rows), CPU)["x"].tolist() == values

    def test_a_row_beyond_the_last_is_an_index_error(self) -> None:
        with pytest.raises(IndexError, match="row 9 is in none of the batches"):
            self.examples.batch(torch.tensor([9]), CPU)
