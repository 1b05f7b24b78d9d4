"""Bad rows: each is refused in one line, before anything is computed, or every row is right."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_from_disk

from planted import runs
from planted.bench import Bench, Fault, Found, apart, done, one_line, resumed

Write = Callable[[], object]


def plain() -> list[dict[str, Any]]:
    """Good rows, to spoil."""
    return list(runs.rows().to_list())


def table(change: Callable[[list[dict[str, Any]]], object]) -> Write:
    """Writes rows.parquet after a change of its rows."""

    def write() -> None:
        rows = plain()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")

    return write


def lines(change: Callable[[list[dict[str, Any]]], object]) -> Write:
    """Writes rows.jsonl after a change of its rows."""

    def write() -> None:
        rows = plain()
        change(rows)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def setting(place: int, key: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    """One value of one row."""
    return lambda rows: rows[place].__setitem__(key, value)


def views() -> None:
    """Strings as Polars writes them."""
    whole = runs.rows().data.table
    for name in ("label", "note"):
        column = whole[name].cast(pa.string_view())
        whole = whole.set_column(whole.column_names.index(name), name, column)
    pq.write_table(whole.replace_schema_metadata(None), "rows.parquet")


def torn() -> None:
    path = Path("rows.parquet")
    path.write_bytes(path.read_bytes()[:-40])


def flipped() -> None:
    path = Path("rows.parquet")
    content = bytearray(path.read_bytes())
    content[-6] ^= 255
    path.write_bytes(content)


def semicolons() -> None:
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([["x", "label"], *([k, k % 2] for k in range(40))])


def nested_nulls(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["turns"] = [{"role": "user", "tool_calls": None}, {"role": "b", "tool_calls": None}]


REFUSED: dict[str, tuple[Write, str, str]] = {
    "a feature is NaN": (
        table(setting(7, "x", [0.0, float("nan"), 0.0, 0.0])),
        "rows.parquet",
        "7",
    ),
    "a feature is infinite": (
        table(setting(7, "x", [0.0, float("inf"), 0, 0])),
        "rows.parquet",
        "7",
    ),
    "a feature is missing": (table(setting(7, "x", None)), "rows.parquet", "7"),
    "a row is longer": (table(setting(7, "x", [0.0] * 5)), "rows.parquet", "x"),
    "a row is empty": (table(setting(7, "x", [])), "rows.parquet", "x"),
    "a label is missing": (table(setting(7, "label", None)), "rows.parquet", "label"),
    "one class only": (
        table(lambda rows: [row.update(label="up") for row in rows]),
        "rows.parquet",
        "label",
    ),
    "no rows": (table(lambda rows: rows.clear()), "rows.parquet", "rows.parquet"),
    "no such column": (table(lambda rows: [r.pop("label") for r in rows]), "rows.parquet", "label"),
    "text where numbers are": (
        table(lambda rows: [row.update(x="one") for row in rows]),
        "rows.parquet",
        "x",
    ),
    "a file cut short": (torn, "rows.parquet", "rows.parquet"),
    "a length that is wrong in the file": (flipped, "rows.parquet", "rows.parquet"),
    "an empty file": (lambda: Path("rows.jsonl").touch(), "rows.jsonl", "rows.jsonl"),
    "a first row of null": (
        lambda: Path("rows.jsonl").write_text("null\n" * 9),
        "rows.jsonl",
        "null",
    ),
    "half a line of JSON": (
        lambda: Path("rows.jsonl").write_text('{"x": [1, 2], "label": 0}\n{"x": [1'),
        "rows.jsonl",
        "",
    ),
    "bytes that are no text": (
        lambda: Path("rows.jsonl").write_bytes(b'{"label": "\xff\xfe", "x": [1.0]}\n' * 9),
        "rows.jsonl",
        "rows.jsonl",
    ),
    "semicolons in a CSV": (semicolons, "rows.csv", "commas"),
    "two columns of a name": (
        lambda: Path("rows.csv").write_text("x,x,label\n" + "1,2,0\n" * 40),
        "rows.csv",
        "x",
    ),
}
"""What is written, where, and a word that the refusal has."""
RIGHT: dict[str, tuple[Write, str]] = {
    "string views": (views, "rows.parquet"),
    "a key that is null in every turn": (table(nested_nulls), "rows.parquet"),
    "such a key in JSON": (lines(nested_nulls), "rows.jsonl"),
    "a column that is null": (table(lambda rows: [r.update(e=None) for r in rows]), "rows.parquet"),
    "markup in a text": (
        lines(setting(3, "note", "</script><script>alert(1)</script>")),
        "rows.jsonl",
    ),
    "a zero byte in a text": (lines(setting(3, "note", "a\0b")), "rows.jsonl"),
    "half a surrogate pair's neighbour": (lines(setting(3, "note", "\U0001f600")), "rows.jsonl"),
    "a text of a megabyte": (lines(setting(3, "note", "x" * 2**20)), "rows.jsonl"),
}
"""What is odd, and to be passed on as it is."""


def faults(bench: Bench) -> dict[str, Fault]:
    """Each in the place of the run's data."""
    del bench

    def refused(write: Write, path: str, word: str) -> Fault:
        def fault(at: Path) -> Found:
            apart(at, lambda: done(write))
            ended = apart(at, resumed(f"data.train={path}"))
            if ended.code == 0:
                return Found("", "it was taken")
            wrong = one_line(ended)
            if word not in ended.said or path not in ended.said:
                wrong = wrong or f"says not what: {ended.said}"
            return Found("", wrong or ("something is left" if (at / "out").exists() else ""))

        return fault

    def right(write: Write, path: str) -> Fault:
        def fault(at: Path) -> Found:
            apart(at, lambda: done(write))
            settings = (f"data.train={path}", "data.label_noise=null", "evaluation=null")
            ended = apart(at, resumed(*settings))
            if ended.code:
                return Found(f"exit code {ended.code}: {ended.said}")
            told = apart(at, lambda: compare(path))
            return Found("", told.out)

        return fault

    named = {name: refused(*arguments) for name, arguments in REFUSED.items()}
    return named | {name: right(*arguments) for name, arguments in RIGHT.items()}


def compare(path: str) -> int:
    """Print what is different between rows kept, or stored, and those of the source."""
    source = (
        pq.read_table(path).to_pylist()
        if path.endswith("parquet")
        else [json.loads(line) for line in Path(path).read_text().splitlines()]
    )
    scores = pq.read_table("out/scores.parquet").to_pylist()
    kept = sorted(line["row"] for line in scores if line["kept"])
    stored = dict(zip(kept, load_from_disk("out")["train"].to_list(), strict=True))
    for row in pq.read_table("out/dropped.parquet").to_pylist():
        stored[row.pop("row")] = row
    bad = [row for row, content in stored.items() if content != source[row]]
    if bad or len(stored) != len(scores):
        print(f"rows that are not what they were: {np.sort(bad)}, {len(stored)} of {len(scores)}")
    return 0
