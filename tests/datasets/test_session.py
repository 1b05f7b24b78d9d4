"""Rows that a Python session has in memory, as a dataset."""

from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from torch.utils.data import TensorDataset

from curate.datasets import as_dataset, handing, read
from curate.errors import DataError

COLUMNS = {"x": [0.5, 1.5, 2.5], "code": ["007", "NA", None], "label": [0, 1, 0]}


@pytest.mark.parametrize(
    "data",
    [
        Dataset.from_dict(COLUMNS),
        pl.DataFrame(COLUMNS),
        pl.DataFrame(COLUMNS).lazy(),
        pd.DataFrame(COLUMNS),
        pa.table(COLUMNS),
    ],
    ids=["datasets", "polars", "lazy", "pandas", "arrow"],
)
def test_frames_come_through_as_they_are(data: Any) -> None:
    with handing({"train": as_dataset(data, "train")}):
        assert read("session:train").to_dict() == COLUMNS


def test_labels_of_pandas_index_are_no_column() -> None:
    frame = pd.DataFrame(COLUMNS).iloc[[2, 0]]
    assert as_dataset(frame, "train").to_dict() == {k: [v[2], v[0]] for k, v in COLUMNS.items()}


def test_pairs_of_tensors_keep_their_shape_and_type() -> None:
    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    data = as_dataset(TensorDataset(x, torch.tensor([1, 0])), "train")
    assert data.column_names == ["features", "label"]
    np.testing.assert_array_equal(np.array(data["features"][:]), x.numpy())
    assert data["label"][:] == [1, 0]
    assert "float32" in str(data.features["features"])


def test_items_may_be_mappings_of_anything() -> None:
    items = [{"text": "a", "x": np.ones(2)}, {"text": "b", "x": np.zeros(2)}]
    data = as_dataset(items, "train")
    assert data.to_dict() == {"text": ["a", "b"], "x": [[1, 1], [0, 0]]}


def test_an_item_is_looked_at_once() -> None:
    class Noisy(TensorDataset):
        seen = 0

        def __getitem__(self, k: int) -> Any:
            Noisy.seen += 1
            return super().__getitem__(k)

    as_dataset(Noisy(torch.ones(5, 2), torch.zeros(5)), "train")
    assert Noisy.seen == 5


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pd.Series([1, 2], name="x"), "train: is a Series|train: cannot be read as rows"),
        (pd.DataFrame({"x": [1, "a"]}), "train: cannot be read as rows"),
        (pl.LazyFrame({"x": [1]}).select("y"), "train: cannot be read as rows"),
        (
            Dataset.from_dict(COLUMNS).with_transform(lambda batch: batch),
            "train: has a transform of its own",
        ),
        (iter([1]), "train: is a list_iterator; hand over a datasets.Dataset"),
        ([], "train: has no rows"),
        ([(1, 2), (1, 2, 3)], "train: its items must be mappings, or pairs"),
        ([{"a": 1}, {"b": 1}], "train: item 1 has b, but item 0 has a"),
        (
            datasets.DatasetDict({"one": Dataset.from_dict(COLUMNS)}),
            "train: has splits one; hand over one of them",
        ),
    ],
)
def test_what_is_not_rows_is_refused(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_dataset(data, "train")


def test_names_are_of_their_session() -> None:
    data = Dataset.from_dict(COLUMNS)
    with handing({"train": data}):
        with handing({"train": data.select([0])}):
            assert len(read("session:train")) == 1
        assert len(read("session:train")) == 3
    with pytest.raises(DataError, match="session:train: was an object of a Python session; save"):
        read("session:train")
