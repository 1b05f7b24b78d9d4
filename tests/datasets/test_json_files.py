"""JSON Lines and lists of objects: what the json module reads, and no crash."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.datasets import json_files
from curate.datasets.json_files import InexactError, json_blocks, json_tables
from curate.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"a": 1, "day": "2024-01-05", "deep": [{"at": "2024-01-05T10:00:00+02:00"}], "note": None},
    {"a": 2**53 + 1, "day": "soon", "deep": [], "note": "it's [{"},
]


def rows(path: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([*json_tables(str(path))], promote_options="permissive").to_pylist()


LAYOUTS = {
    "lines": "\n".join(map(json.dumps, ROWS)) + "\n",
    "lines with blank ones": "\n\n" + "\r\n \n".join(map(json.dumps, ROWS)),
    "list": json.dumps(ROWS),
    "pretty list": " " + json.dumps(ROWS, indent=2).replace("\n", "\r\n") + "\n",
    "pretty objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "byte order mark": "\ufeff" + "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_that_the_json_module_reads(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(LAYOUTS[layout], encoding="utf-8", newline="")
    assert rows(path) == ROWS


@pytest.mark.parametrize("layout", ["lines", "list"])
def test_blocks_do_not_change_rows(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [row | {"a": k, "later": k if k > 50 else None} for k in range(50) for row in ROWS]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(many) if layout == "list" else "\n".join(map(json.dumps, many)))
    monkeypatch.setattr(json_files, "BLOCK", 300)
    assert rows(path) == many
    blocks = [*json_blocks(str(path))]
    assert len(blocks) > (1 if layout == "lines" else 0)
    counts = [block.count(b"\n") for _, block in blocks]
    assert [before for before, _ in blocks] == [sum(counts[:k]) for k in range(len(counts))]


@pytest.mark.parametrize(
    "lines",
    [
        '{"a": 9007199254740993}\n{"a": 1.5}\n',
        '{"a": [{"b": 18446744073709551615}]}\n',
        '{"a": 1}\n{"a": "x"}\n',
        '{"a": 1}\n{"a": }\n',
        '{"a": 1, "a": 2}\n',
    ],
)
def test_what_arrow_would_change_or_not_read_is_not_read_by_it(lines: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines)
    with pytest.raises(InexactError):
        rows(path)


DEEP = "[" * 100_000 + "]" * 100_000
WRONG = [
    ('{"a": 1}\n\n{"a": 2}\nnull\n', "row 2 is null; every row must be an object of columns"),
    ('{"a": 1}\n[1, 2]\n', r"row 1 is \[1, 2\]; every row must be an object"),
    ('[{"a": 1}, 3]', "row 1 is 3; every row must be an object"),
    ('[{"a": 1}, {"a": 2}', "row 2: there is no comma before it, or the list has no end"),
    ('[{"a": 1} {"a": 2}]', "row 1: there is no comma before it"),
    ('[{"a": 1}] {"a": 2}', "row 1: it stands behind the list"),
    ('[{"a": 1}, {"a": }]', "row 1: Expecting value"),
    (f'{{"a": 1}}\n{{"a": {DEEP}}}\n', "row 1 is nested more than 100 deep"),
    (f'{{"a": {DEEP}}}\n', "row 0 is nested more than 100 deep"),
    (f'[{{"a": 1}},\n{{"a":\n{DEEP}}}]', "row 1 is nested more than 100 deep"),
    (f'[{{"a": {"[" * 101}{"]" * 101}}}\n]', "row 0 is nested more than 100 deep"),
    ('{"a": ' * 100_000, "row 0 is nested more than 100 deep"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[w[:20] for _, w in WRONG])
def test_what_is_no_row_is_named_with_its_number(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=f"rows.jsonl: .*{message}"):
        rows(path)


def test_every_line_of_every_block_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "BLOCK", 1)  # a block is a line
    path = tmp_path / "rows.jsonl"
    for line in ("null", "[1]", f'{{"a": {DEEP}}}'):
        path.write_text('{"a": 1}\n' * 7 + f"\n{line}\n")
        with pytest.raises(DataError, match="row 7 is "):
            rows(path)


def test_brackets_in_strings_are_not_depth(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"a": "[" * 1000 + '\\"', "b": [[[1]]] * 300}
    path.write_text(json.dumps(row) + "\n")
    assert rows(path) == [row]


def test_a_row_may_be_long_but_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    long = [{"a": "x" * 5000}, {"a": "y"}]
    path.write_text("\n".join(map(json.dumps, long)))
    monkeypatch.setattr(json_files, "BLOCK", 100)
    assert rows(path) == long
    monkeypatch.setattr(json_files, "LONGEST", 1000)
    with pytest.raises(DataError, match=r"rows.jsonl: .*row"):
        rows(path)
