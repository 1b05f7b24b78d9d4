"""Files of rows: which are meant, and one table of those that differ."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features

from curate.datasets import fingerprint_of
from curate.datasets.files import ending_of, names_files, plain_table, read_files
from curate.errors import DataError


def write(path: Path, content: Any) -> None:
    """Text as it is, a table as Parquet, bytes packed by gzip."""
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(gzip.compress(content))
    else:
        path.write_text(content)


def lines(*values: Any) -> str:
    return "".join(json.dumps({"a": value}) + "\n" for value in values)


def table(values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"a": pa.array(values, kind)})


SHARDS: list[tuple[str, list[Any], list[Any]]] = [
    ("csv", ["a\n1\n2\n", "a\n2.5\n"], ["1", "2", "2.5"]),
    ("csv", ["a\n1\n", "a\nx\n", ""], ["1", "x"]),
    ("csv", ["a\n", "a\n1\n", "a\n"], [1]),
    ("csv", ["b,a\nx,1\n", "a\n2\n"], [1, 2]),
    ("CSV", ["a\n1\n"], [1]),
    ("csv.gz", [b"a\n1\n", b"a\n2\n"], [1, 2]),
    ("Jsonl.GZ", [lines(1).encode(), lines("x").encode()], [1, "x"]),
    ("jsonl", [lines(None, None), lines("2024-01-05")], [None, None, "2024-01-05"]),
    ("jsonl", [lines(1), lines(0.5)], [1.0, 0.5]),
    ("jsonl", [lines(2**53 + 1), lines(0.5)], [2**53 + 1, 0.5]),
    ("jsonl", ['{"b": 1}\n', lines([{"x": 1}]), ""], [None, [{"x": 1}]]),
    ("jsonl", [lines({}), lines({})], [{}, {}]),
    ("jsonl", [lines([{}]), lines([{"x": {}}])], [[{}], [{"x": {}}]]),
    ("json", [json.dumps([{"a": 1}]), lines(2)], [1, 2]),
    ("parquet", [table([1], pa.int32()), table([2**40])], [1, 2**40]),
    ("parquet", [table([1]), table([0.5])], [1.0, 0.5]),
    ("parquet", [table([]), table(["x"])], ["x"]),
    ("parquet", [table([], pa.int64()), table(["x"])], ["x"]),
    ("parquet", [table([None]), table([[1]]), table([[0.5]])], [None, [1.0], [0.5]]),
    ("parquet", [pa.table({"b": [1]}), table(["x"]), pa.table({})], [None, "x"]),
    ("PARQUET", [pa.table({"a": pa.array(["x"]).dictionary_encode()})], ["x"]),
    (
        "parquet",
        [table([{"x": 1}]), table([{"y": "z"}])],
        [{"x": 1, "y": None}, {"x": None, "y": "z"}],
    ),
]


@pytest.mark.parametrize(("ending", "contents", "values"), SHARDS)
def test_files_that_differ_are_one_table(
    ending: str, contents: list[Any], values: list[Any], tmp_path: Path
) -> None:
    for place, content in enumerate(contents):
        write(tmp_path / f"part-{place}.{ending}", content)
    assert read_files(str(tmp_path / "part-*"), {})["a"][:] == values


def test_what_is_read_can_be_stored_again(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", lines({}, {}) + lines({"b": {}}))
    data = read_files(str(tmp_path / "rows.jsonl"), {})
    data.to_parquet(tmp_path / "rows.parquet")
    assert read_files(str(tmp_path / "rows.parquet"), {})["a"][:] == [{}, {}, {"b": {}}]


def test_what_no_type_holds_is_refused_with_file_and_column(tmp_path: Path) -> None:
    write(tmp_path / "p0.parquet", table([1]))
    write(tmp_path / "p1.parquet", table(["x"]))
    with pytest.raises(DataError, match=r"p1.parquet: its columns .* Field a has incompatible"):
        read_files(str(tmp_path / "p*"), {})
    write(tmp_path / "p0.parquet", table([2**53 + 1]))
    write(tmp_path / "p1.parquet", table([0.5]))
    with pytest.raises(DataError, match=r"p0.parquet: the values of column a .* not in range"):
        read_files(str(tmp_path / "p*"), {})


@pytest.mark.parametrize(
    ("ending", "good", "bad"),
    [("csv", "a\n1\n", "a\n1,2\n"), ("jsonl", lines(1), "{"), ("parquet", table([1]), "PAR1")],
)
def test_the_file_that_cannot_be_read_is_named_not_the_pattern(
    ending: str, good: Any, bad: str, tmp_path: Path
) -> None:
    write(tmp_path / f"p0.{ending}", good)
    write(tmp_path / f"p1.{ending}", bad)
    with pytest.raises(DataError, match=rf"p1.{ending}: cannot be read: "):
        read_files(str(tmp_path / "p*"), {})


def test_a_class_is_its_name_in_every_file(tmp_path: Path) -> None:
    names = [["no", "yes"], ["yes", "no", "maybe"]]
    for place, own in enumerate(names):
        features = Features({"label": ClassLabel(names=own)})
        ids = [*range(len(own))]
        Dataset.from_dict({"label": ids}, features=features).to_parquet(
            tmp_path / f"{place}.parquet"
        )
    data = read_files(str(tmp_path / "*.parquet"), {})
    words = data.features["label"].int2str(data["label"][:])
    assert words == [name for own in names for name in own]


@pytest.mark.parametrize("within", ["list", "mapping", "both"])
def test_classes_within_lists_and_mappings_are_numbered_alike(tmp_path: Path, within: str) -> None:
    for place, names in enumerate((["a", "b"], ["a", "b"], ["b", "a"])):
        kind: Any = ClassLabel(names=names)
        kind, value = {
            "list": (datasets.List(kind), ["a"]),
            "mapping": ({"key": kind}, {"key": "a"}),
            "both": (datasets.List({"key": kind}), [{"key": "a"}]),
        }[within]
        data = Dataset.from_dict({"m": [value]}, features=Features({"m": kind}))
        data.to_parquet(tmp_path / f"{place}.parquet")
    assert len(read_files(str(tmp_path / "[01].parquet"), {})) == 2
    with pytest.raises(DataError, match=r"2.parquet: m.* has the classes b, a, but .* are a, b;"):
        read_files(str(tmp_path / "*.parquet"), {})


def test_the_file_of_that_very_name_is_read_though_it_is_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "rows[1].csv", "a\n1\n")
    write(tmp_path / "rows1.csv", "a\n2\n")
    assert read_files(str(tmp_path / "rows[1].csv"), {})["a"][:] == [1]
    (tmp_path / "rows[1].csv").unlink()
    assert read_files(str(tmp_path / "rows[1].csv"), {})["a"][:] == [2]
    (tmp_path / "run[1]").mkdir()
    write(tmp_path / "run[1]" / "part-0.csv", "a\n3\n")
    assert read_files(str(tmp_path / "run[1]" / "part-*.csv"), {})["a"][:] == [3]


def test_arrow_files_of_polars_are_read(tmp_path: Path) -> None:
    rows = {"a": ["x", None], "deep": [[{"b": "y"}], []]}
    pl.DataFrame(rows).write_ipc(tmp_path / "rows.arrow")
    assert read_files(str(tmp_path / "rows.arrow"), {}).to_dict() == rows
    kind = pl.Categorical
    kinds = {"c": kind, "e": pl.Enum(["y", "x"]), "l": pl.List(kind), "s": pl.Struct({"k": kind})}
    rows = {"c": ["x", None], "e": ["x", "y"], "l": [["x", None], []], "s": [{"k": "x"}] * 2}
    pl.DataFrame(rows, schema=kinds).write_ipc(tmp_path / "rows.arrow")
    assert read_files(str(tmp_path / "rows.arrow"), {}).to_dict() == rows


@pytest.mark.parametrize(
    "calls", [[{"a": 1}, {"a": 1.5}], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [{"a": 1}, {"b": 1}]]
)
def test_what_turns_call_is_as_each_row_has_it(tmp_path: Path, calls: list[Any]) -> None:
    rows = [[{"role": "assistant", "content": "x", "calls": [call]}] for call in calls]
    write(tmp_path / "rows.jsonl", lines(*rows))
    read = read_files(str(tmp_path / "rows.jsonl"), {})["a"][:]
    assert [json.dumps(row) for row in read] == [json.dumps(row) for row in rows]
    write(tmp_path / "rows.jsonl", lines(rows[0], rows[0]))
    alike = read_files(str(tmp_path / "rows.jsonl"), {})
    assert "Json" not in str(alike.features)
    assert alike["a"][:] == [rows[0], rows[0]]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("content", [b"", b"\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n \n"])
def test_files_without_content_have_no_rows(tmp_path: Path, ending: str, content: bytes) -> None:
    for name in (f"0{ending}", f"2{ending}.gz"):
        packed = gzip.compress(content) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(DataError, match="is empty"):
            read_files(str(tmp_path / name), {})
    write(tmp_path / f"1{ending}", "a\n3\n" if ending == ".csv" else lines(3))
    assert read_files(str(tmp_path / f"*{ending}*"), None)["a"][:] == [3]


def test_content_decides_and_not_the_clock(tmp_path: Path) -> None:
    path, prints = tmp_path / "rows.csv", []
    for value in (1, 2):
        path.write_text(f"a\n{value}\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        data = read_files(str(path), {})
        assert data["a"][:] == [value]
        prints.append((data._fingerprint, fingerprint_of(data)["fingerprint"]))
    assert len({*prints}) == 2
    assert read_files(str(path), {})._fingerprint == prints[-1][0]


def test_nothing_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "rows.jsonl", lines(*range(100)))
    assert len(read_files(str(tmp_path / "rows.jsonl"), {})) == 100
    assert [*(tmp_path / "cache").iterdir()] == []


def test_endings() -> None:
    endings = [ending_of(p) for p in ("a.CSV", "b/a.jsonl.GZ", "a.json.zst", "a.gz", "a")]
    assert endings == [".csv", ".jsonl", ".json", "", ""]
    named = [names_files(p) for p in ("a.csv.gz", "a*", "a.txt", "user/data", "a.Parquet")]
    assert named == [True, True, False, False, True]


def test_a_plain_table_leaves_columns_alone_that_are_plain() -> None:
    turns = [[{"text": f"{k}", "calls": None}] * 2 for k in range(4)]
    texts = pa.array(["a", "b", None, "a"])
    rows = pa.table({"turns": turns, "view": texts.cast(pa.string_view())})
    rows = rows.append_column("code", texts.dictionary_encode())
    found = plain_table(rows)
    assert [str(kind) for kind in found.schema.types[1:]] == ["large_string", "string"]
    found.validate(full=True)
    assert found.to_pylist() == rows.to_pylist()
