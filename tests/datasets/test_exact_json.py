"""Values of several kinds in one column are what they were."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import Value

from curate.datasets.exact_json import Kind, exact_tables
from curate.errors import DataError

KINDS: list[tuple[list[Any], Any]] = [
    ([None, None], Value("null")),
    ([1, None, -5], Value("int64")),
    ([1, 2**64 - 1], Value("uint64")),
    ([-1, 2**64 - 1], None),
    ([2**64], None),
    ([1, 1.5], Value("float64")),
    ([2**53 + 1, 1.5], None),
    ([True, False], Value("bool")),
    ([True, 1], None),
    (["a", 1], None),
    ([[], None], datasets.List(Value("null"))),
    ([[1], [0.5, None]], datasets.List(Value("float64"))),
    ([[1], ["a"]], None),
    ([{"a": 1}, {"b": "x"}], {"a": Value("int64"), "b": Value("string")}),
    ([{"a": 1}, {"a": "x"}], None),
    ([{}], None),
    ([{"a": 1}, [1]], None),
]


@pytest.mark.parametrize(("values", "feature"), KINDS, ids=[str(v)[:30] for v, _ in KINDS])
def test_the_type_of_values(values: list[Any], feature: Any) -> None:
    kind = Kind()
    for value in values:
        kind.see(value)
    assert kind.feature() == feature


def test_columns_come_back_as_they_were_over_files(tmp_path: Path) -> None:
    rows = [
        {"id": 2**53 + 1, "mixed": 5, "turns": [{"role": "a", "content": "x"}]},
        {"id": 0.5, "mixed": "5", "turns": [{"role": "b", "content": [{"text": None}]}]},
        {"id": None, "later": [1]},
    ]
    files = [str(tmp_path / f"{k}.jsonl") for k in range(3)]
    for path, row in zip(files, rows, strict=True):
        Path(path).write_text(json.dumps(row) + "\n")
    features, parts = exact_tables(files)
    table = pa.concat_tables([part for _, part in parts])
    assert {name for name, kind in features.items() if isinstance(kind, datasets.Json)} == {
        "id",
        "mixed",
        "turns",
    }
    for name in ("id", "mixed", "turns"):
        cells = [None if c is None else json.loads(c) for c in table[name].to_pylist()]
        assert cells == [row.get(name) for row in rows]
    assert table["later"].to_pylist() == [None, None, [1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": }', "row 1: Expecting value"),
        ('{"a": {"b": 1, "b": 2}}', "row 1: it has two keys 'b' in one object"),
        ('{"a": "\\ud83d"}', "row 1: .*surrogates not allowed"),
    ],
)
def test_the_row_that_is_not_json_is_named(line: str, message: str, tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text('{"a": 1}\n')
    files[1].write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"b.jsonl: cannot be read: {message}"):
        exact_tables([*map(str, files)])
