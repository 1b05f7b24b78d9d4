"""Batches in the forms of several libraries: to Arrow, and back with more columns."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from curate.datasets import as_arrow, names_of, with_columns

COLUMNS = {"a": [1, 2, 3], "b": [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]], "c": ["x", "y", "z"]}
FORMS: dict[str, Any] = {
    "lists": COLUMNS,
    "numpy": {name: np.array(values) for name, values in COLUMNS.items()},
    "objects": {
        name: np.array([*values, None], dtype=object)[:3] for name, values in COLUMNS.items()
    },
    "arrow": pa.table(COLUMNS),
    "polars": pl.DataFrame(COLUMNS),
    "pandas": pl.DataFrame(COLUMNS).to_pandas(),
}


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form: str) -> None:
    rows = FORMS[form]
    assert names_of(rows) == ["a", "b", "c"]
    assert as_arrow(rows, ["b", "a"]).to_pydict() == {"b": COLUMNS["b"], "a": COLUMNS["a"]}
    new = {"s": pa.array([1.5, None, 2.5]), "k": pa.array([True, False, True])}
    more = with_columns(rows, new)
    assert type(more) is type(rows)
    assert names_of(more) == ["a", "b", "c", "s", "k"]
    assert names_of(rows) == ["a", "b", "c"]  # which is left as it was
    assert as_arrow(more, names_of(rows)) == as_arrow(rows, names_of(rows))
    values = np.asarray(more["s"], dtype=float)
    assert np.array_equal(values, [1.5, np.nan, 2.5], equal_nan=True)
    assert np.asarray(more["k"]).tolist() == [True, False, True]
    if form in ("arrow", "polars"):
        assert (more["s"].is_null().sum() if form == "polars" else more["s"].null_count) == 1


def test_what_a_dataset_says_of_a_column_goes_along_until_it_is_changed() -> None:
    features = Features({"label": ClassLabel(names=["no", "yes"]), "n": Value("int64")})
    data = Dataset.from_dict({"label": [0, 1], "n": [3, 4]}, features)
    seen = []

    def look(batch: Any) -> Any:
        seen.append(Features.from_arrow_schema(as_arrow(batch, ["label"]).schema)["label"])
        batch["label"] = ["a", "b"]
        seen.append(Features.from_arrow_schema(as_arrow(batch, ["label"]).schema)["label"])
        return {"label": [1, 0], "n": batch["n"]}

    data.map(look, batched=True, load_from_cache_file=False)
    assert seen == [features["label"], Value("string")]
