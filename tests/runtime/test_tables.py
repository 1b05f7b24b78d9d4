"""Rows in Arrow, against what `datasets` itself gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from curate.runtime import large
from curate.runtime.tables import read_mapped, take


@pytest.mark.parametrize(
    "places", [[0], [3, 4, 5], [3, 4, 9], [9, 2, 2], [0, 99], [*range(100)], [50, 0, 99]]
)
def test_rows_at_places_are_those_of_the_library(places: list[int]) -> None:
    whole = Dataset.from_dict({"n": [*range(100)], "text": [f"row {k}" for k in range(100)]})
    backwards = whole.select([*range(99, -1, -1)])
    for table in (whole, backwards, whole.select_columns(["text"])):
        assert take(table, np.array(places)).to_pylist() == table.select(places).to_list()


def test_a_file_is_mapped_and_let_go_of(tmp_path: Path) -> None:
    rows = pa.table({"n": [*range(1000)]})
    with pa.RecordBatchStreamWriter(str(tmp_path / "rows.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    before = {id(held) for held in large._maps}
    found = read_mapped(tmp_path / "rows.arrow")
    assert len({id(held) for held in large._maps} - before) == 1
    large.released()
    assert found.equals(rows)
