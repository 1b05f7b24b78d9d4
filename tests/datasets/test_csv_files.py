"""CSV: cells as they stand there, numbers where they are used as numbers."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.datasets import csv_files
from curate.datasets.csv_files import csv_tables, typed
from curate.errors import DataError


def cells(path: Path) -> dict[str, list[str]]:
    return pa.concat_tables([*csv_tables(str(path))]).to_pydict()


def column(values: list[str], use: Any = None) -> pa.ChunkedArray:
    uses = {} if use is None else {"a": use}
    table = pa.table({"a": pa.array(values, pa.string())})
    (whole,) = typed(table, uses)
    split = pa.concat_tables([table.slice(k, 1) for k in range(len(table))])
    assert pa.concat_tables(typed(split, uses)).equals(whole)  # what all rows say counts
    return whole.column("a")


def test_cells_are_those_that_the_csv_module_reads(tmp_path: Path) -> None:
    rows = [["NA", "", "007"], ['say "no"', "two\nlines", "é☃"], [" x ", "a,b", "1e5"]]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["a", "b,c", "d"], *rows])
    assert list(map(list, zip(*cells(path).values(), strict=True))) == rows
    assert [*cells(path)] == ["a", "b,c", "d"]


UNTOUCHED = [
    ["NA", "null", "None"],
    ["007", "1"],
    ["9007199254740993", ""],
    ["18446744073709551616", "1"],
    ["1", "1.5"],
    ["1.50", "2.25"],
    ["1e5", "2.0"],
    ["0.00001", "2.5"],
    ["+1", "2"],
    ["-0", "0"],
    ["nan", "inf"],
    ["True", "False"],
    ["2024-01-05", "1999-12-31"],
    ["", ""],
    ["9007199254740993", "-5"],
    ["0.1", "-3.0"],
]


@pytest.mark.parametrize("values", UNTOUCHED, ids=str)
def test_a_column_that_nobody_uses_goes_out_as_the_text_that_it_was(values: list[str]) -> None:
    assert [str(value) for value in column(values).to_pylist()] == values


def test_numbers_that_are_written_as_numbers_are_numbers() -> None:
    assert column(["0", "-12", str(2**53 + 1)]).to_pylist() == [0, -12, 2**53 + 1]
    assert column(["0.5", "-12.0"]).to_pylist() == [0.5, -12.0]


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["1", "2"], [1, 2]),
        (["1", "2.50"], [1, 2.5]),
        ([" 1.5", "+2", "007", ".5", "1e-3"], [1.5, 2, 7, 0.5, 0.001]),
        (["1", "", " "], [1, None, None]),
        (["True", "false"], [True, False]),
        (["1", "much"], ["1", "much"]),
        (["1", "0x1F"], ["1", "0x1F"]),
        (["1", "-0XA"], ["1", "-0XA"]),
        (["1", "+-5"], ["1", "+-5"]),
        (["1", "++5"], ["1", "++5"]),
    ],
)
def test_numbers_may_be_written_in_any_way(values: list[str], numbers: list[Any]) -> None:
    assert column(values, "number").to_pylist() == numbers


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["1", "0", ""], [1, 0, None]),
        (["1", "0.5"], [1.0, 0.5]),
        (["007", "010"], ["007", "010"]),
        (["None", "NA", ""], ["None", "NA", None]),
        (["18446744073709551616", "1"], ["18446744073709551616", "1"]),
        (["", ""], [None, None]),
    ],
)
def test_labels_are_numbers_only_if_written_plainly(values: list[str], labels: list[Any]) -> None:
    assert column(values, "label").to_pylist() == labels


def test_text_is_text_whatever_it_says() -> None:
    assert column(["1", "", "2"], "text").to_pylist() == ["1", "", "2"]


def test_the_column_of_that_very_name_comes_before_those_of_a_pattern() -> None:
    table = pa.table({"x[0]": ["1"], "x0": ["2"], "x1": ["03"], "y": ["4"]})
    (rows,) = typed(table, {"x1": "text", "x[0]": "number", "x*": "number"})
    read = rows.to_pydict()
    assert read == {"x[0]": [1], "x0": [2], "x1": ["03"], "y": [4]}
    (rows,) = typed(table, None)
    assert rows.to_pydict() == {"x[0]": [1], "x0": [2], "x1": ["03"], "y": [4]}


WRONG: list[tuple[str | bytes, str]] = [
    ("", "has no header"),
    ("a,b\n1,2\n3\n", "row 1: Expected 2 columns, got 1"),
    ("a,b\n1,2\n3,4,5\n", "row 1: Expected 2 columns, got 3"),
    (b"a,b\n1,2\n3,\xff\n", "column b: row 1: .*UTF8"),
    (b"\xff,b\n1,2\n", "a header that is not UTF-8"),
    ('a,b\n1,2\n3,"4\n5,6\n', "row 1: a quote is never closed"),
    ("a,b,a\n1,2,3\n", "has two columns 'a'"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_wrong_is_named_with_file_and_row(
    content: str | bytes, message: str, packed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(DataError, match=rf"rows.csv: .*{message}"):
        cells(path)


def test_rows_are_counted_beyond_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "BLOCK", 50)
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + '1,"2\n"\n' * 100 + "\n3\n")
    with pytest.raises(DataError, match="row 100: Expected 2 columns, got 1"):
        cells(path)
    path.write_text("a,b\n" + "1,2\n" * 100 + "x" * 200 + ",3\n")
    with pytest.raises(DataError, match="a row is longer than"):
        cells(path)


def test_a_quote_within_a_cell_is_only_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,5" pipe\n2,x\n')
    assert cells(path) == {"a": ["1", "2"], "b": ['5" pipe', "x"]}
