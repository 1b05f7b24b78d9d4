"""Sources gone through once, in tables of one size."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from curate.datasets import stream
from curate.errors import DataError


def test_tables_have_the_size_and_all_rows_in_order(tmp_path: Path) -> None:
    for k in range(3):
        file = pl.DataFrame({"a": range(100 * k, 100 * k + 100)})
        file.write_parquet(tmp_path / f"{k}.parquet", row_group_size=30)
    source = stream(str(tmp_path / "*.parquet"))
    assert source.rows == 300
    for size in (1, 7, 100, 1000):
        tables = [*source.tables(size)]
        assert {len(table) for table in tables[:-1]} <= {size}
        assert len(tables[-1]) <= size
        assert pa.concat_tables(tables)["a"].to_pylist() == [*range(300)]


def test_files_of_several_schemas_and_other_kinds_give_the_same_rows(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}).write_parquet(tmp_path / "0.parquet")
    pl.DataFrame({"a": [0.5], "c": [True]}).write_parquet(tmp_path / "1.parquet")
    source = stream(str(tmp_path / "*.parquet"))
    (table,) = source.tables(10)
    assert table["a"].to_pylist() == [1.0, 2.0, 0.5]
    assert table["c"].to_pylist() == [None, None, True]
    pl.DataFrame({"a": range(5)}).write_csv(tmp_path / "rows.csv")
    source = stream(str(tmp_path / "rows.csv"), uses={"a": "number"})
    assert [len(table) for table in source.tables(2)] == [2, 2, 1]


def test_views_and_dictionaries_come_as_what_they_hold(tmp_path: Path) -> None:
    words = pl.DataFrame({"a": pl.Series(["x", "y", "x"], dtype=pl.Categorical)})
    words.write_parquet(tmp_path / "rows.parquet")
    source = stream(str(tmp_path / "rows.parquet"))
    (table,) = source.tables(10)
    assert table["a"].to_pylist() == ["x", "y", "x"]
    assert not pa.types.is_dictionary(table["a"].type)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read"):
        stream(str(tmp_path / "bad.parquet"))
    pl.DataFrame({"a": []}).write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: has no rows"):
        stream(str(tmp_path / "empty.parquet"))
