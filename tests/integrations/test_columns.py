"""A value per example, by a key of the batch or a function of it, or an error that says why not."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import DataError
from curate.integrations.columns import WithColumns, read_column, read_columns

BATCH = {"x": torch.zeros(3, 2), "kind": torch.tensor([1, 0, 1]), "name": ["a", "b", "a"]}


@pytest.mark.parametrize(
    ("read", "values"),
    [
        ("kind", [1, 0, 1]),
        ("name", ["a", "b", "a"]),
        (lambda batch: batch["kind"] + 1, [2, 1, 2]),
        (
            lambda batch: [f"kind {k}" for k in batch["kind"].tolist()],
            ["kind 1", "kind 0", "kind 1"],
        ),
    ],
)
def test_values_are_those_of_a_key_or_a_function(read: Any, values: list[Any]) -> None:
    assert read_column(read, BATCH, "label").tolist() == values
    both = read_columns(read, [BATCH, BATCH], "label")
    assert both is not None
    assert both.tolist() == values * 2


def test_what_is_not_asked_for_is_not_read() -> None:
    assert read_columns(None, [BATCH], "label") is None


@pytest.mark.parametrize(
    ("batch", "read", "message"),
    [
        (BATCH, lambda batch: batch["kind"][:2], r"one value per example, shape \(3,\), .* \(2,\)"),
        (BATCH, "x", r"must give one value per example, shape \(3,\), but got \(3, 2\)"),
        ([BATCH["x"]], "kind", "is 'kind', but a batch of type list has no such key"),
        (BATCH, "sort", "a batch of type dict has no such key; it has x, kind, name"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(batch: Any, read: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^group_by .*{message}"):
        read_column(read, batch, "group_by")


def test_values_may_lie_anywhere() -> None:
    batch = {"x": torch.zeros(2), "kind": SimpleNamespace(values=np.array([3, 4]))}
    assert read_column(lambda b: b["kind"].values, batch, "row").tolist() == [3, 4]


def test_a_collator_that_leaves_columns_out_is_given_them_back() -> None:
    class Collate:
        pad = 7

        def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {"x": torch.tensor([row["x"] for row in rows])}

    rows = [{"x": 1, "row": 5, "kind": "a"}, {"x": 2, "row": 6, "kind": "b"}]
    collate = copy.deepcopy(WithColumns(Collate(), ["row", "kind", "x", "absent"]))
    batch = collate(rows)
    assert {key: list(part) for key, part in batch.items()} == {
        "x": [1, 2],
        "row": [5, 6],
        "kind": ["a", "b"],
    }
    assert collate.pad == 7
