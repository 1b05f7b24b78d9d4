"""Rows of a dataset, some at a time and some of them: those that `datasets` itself gives."""

from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from curate.datasets import rows as module
from curate.datasets.rows import batches, pick_rows, rows_together


def data(count: int = 50) -> Dataset:
    columns = {"n": [*range(count)], "text": [f"row {k}" for k in range(count)]}
    return Dataset.from_dict(columns | {"list": [[k, -k] for k in range(count)]})


def read(some: Dataset) -> list[dict[str, Any]]:
    found = [*batches(some)]
    assert [row for part, _ in found for row in range(part.start, part.stop)] == [*range(len(some))]
    return pa.concat_tables(table for _, table in found).to_pylist()


@pytest.mark.parametrize("piece", [1, 100, 2**20])
def test_batches_are_all_rows_in_order(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    for some in (
        data(),
        data().select(range(7, 31)),
        data().select([*range(3, 40), 42, 45]),
        data().select([49, 0, 3]),
        data().select_columns(["list"]),
        pick_rows(data(), torch.tensor([5, 6, 7, 9])).select_columns(["text"]),
    ):
        assert read(some) == some.to_list()


def test_short_rows_come_together_and_long_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Dataset.from_dict({"n": [0] * 1000}), Dataset.from_dict({"t": ["x" * 2**20] * 3})
    assert rows_together(short) >= 1000
    assert rows_together(long) == 1
    monkeypatch.setattr(module, "MOST", 10)
    assert rows_together(short) == 10


def test_rows_are_picked_without_a_copy() -> None:
    whole, rows = data(), torch.tensor([0, 3, 4, 48], dtype=torch.int32)
    some = pick_rows(whole, rows)
    assert some.to_list() == whole.select(rows.tolist()).to_list()
    assert some.features == whole.features
    addresses = [d.data.column(0).chunk(0).buffers()[1].address for d in (some, whole)]
    assert addresses[0] == addresses[1]
    assert some.select([3, 1])["n"] == [48, 3]
    assert pick_rows(whole, torch.arange(50)) is whole


def test_caches_know_the_rows_by_the_data_and_their_places() -> None:
    whole = data()
    prints = [
        pick_rows(whole, torch.tensor(rows))._fingerprint for rows in ([1, 2], [1, 2], [1, 3])
    ]
    assert prints[0] == prints[1] != prints[2]
    assert pick_rows(data(51), torch.tensor([1, 2]))._fingerprint != prints[0]
