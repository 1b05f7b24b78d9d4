"""What columns hold, against counting it in plain Python."""

import io
import random
from collections import Counter
from statistics import mean, median_low, pstdev
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from curate.datasets import Column, contradicting, look, repeated, row_keys, shared


def columns(rows: dict[str, list[Any]], **features: Any) -> dict[str, Column]:
    data = Dataset.from_dict(rows, features=Features(features) if features else None)
    return {column.name: column for column in look(data)}


def test_numbers_are_described() -> None:
    values = [random.Random(k).gauss(5, 2) for k in range(500)]
    seen = columns({"x": [*values, None, float("nan"), float("inf")], "n": [*range(503)]})
    x = seen["x"]
    assert (x.kind, x.missing, x.whole, x.counts) == ("number", 3, False, None)
    assert (x.low, x.high) == (min(values), max(values))
    assert (x.mean, x.deviation) == pytest.approx((mean(values), pstdev(values)))
    assert seen["n"].whole
    assert seen["n"].distinct == 503


def test_texts_are_described() -> None:
    texts = ["", "é猫", "two words", "a", "a"] * 20 + ["the longest of all"]
    seen = columns({"t": [*texts, None]})["t"]
    lengths = [len(text) for text in texts]
    assert (seen.kind, seen.missing, seen.distinct) == ("text", 1, len({*texts}))
    assert (seen.low, seen.high) == (0, max(lengths))
    assert abs(seen.middle - median_low([*lengths, 0])) <= 1
    assert seen.bytes == pytest.approx(sum(len(t.encode()) for t in texts) / sum(lengths))
    assert seen.blanks == pytest.approx(21 / 102)
    assert seen.counts == Counter(texts)


def test_classes_go_by_their_names() -> None:
    kind = ClassLabel(names=["no", "yes"])
    seen = columns({"label": [1, 1, 0, None]}, label=kind)["label"]
    assert (seen.kind, seen.counts, seen.missing) == ("class", {"yes": 2, "no": 1}, 1)
    numbered = Dataset.from_dict({"label": [1, 0]}, features=Features({"label": kind}))
    other = ClassLabel(names=["yes", "no"])
    turned = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": other}))
    assert row_keys(numbered, ["label"]).tolist() == row_keys(turned, ["label"]).tolist()


def test_other_kinds_are_told_apart() -> None:
    turns = [[{"role": "user", "content": "hi"}]]
    file = io.BytesIO()
    PIL.Image.new("L", (3, 2)).save(file, "PNG")
    seen = columns(
        {
            "messages": turns * 2,
            "vector": [[1.0, 2.0], [3.0, 4.0]],
            "ragged": [[1], [2, 3]],
            "turns": [[{"from": "a"}]] * 2,
            "picture": [file.getvalue(), b"junk"],
        }
    )
    kinds = {name: column.kind for name, column in seen.items()}
    assert kinds == {
        "messages": "messages",
        "vector": "numbers",
        "ragged": "numbers",
        "turns": "other",
        "picture": "image",
    }
    assert (seen["vector"].width, seen["ragged"].width) == (2, 0)
    assert seen["picture"].sizes == {(2, 3): 1}
    assert seen["picture"].missing == 1


def test_rows_that_are_alike_are_counted() -> None:
    rng = random.Random(3)
    rows = [(rng.randrange(6), rng.choice("abc"), rng.randrange(3)) for _ in range(200)]
    x, t, label = map(list, zip(*rows, strict=True))
    data = Dataset.from_dict({"x": x, "t": t, "label": label})
    keys, labels = row_keys(data, ["x", "t"]), row_keys(data, ["label"])
    by_inputs: dict[Any, set[int]] = {}
    for *inputs, of in rows:
        by_inputs.setdefault(tuple(inputs), set()).add(of)
    assert repeated(row_keys(data, ["x", "t", "label"])) == 200 - len({*rows})
    assert contradicting(keys, labels) == sum(len(by_inputs[row[:2]]) > 1 for row in rows)
    others = Dataset.from_dict({"x": [0.0, 1.0, 9.0], "t": ["a", "b", "c"]})
    known = {(a, b) for a, b, _ in rows}
    expected = sum(pair in known for pair in [(0, "a"), (1, "b"), (9, "c")])
    assert shared(keys, row_keys(others, ["x", "t"])) == expected


def test_columns_are_not_mixed_up() -> None:
    data = Dataset.from_dict({"a": ["x", "y"], "b": ["y", "x"]})
    first, second = row_keys(data, ["a", "b"])
    assert first != second


def test_pictures_are_compared_by_what_they_hold(tmp_path: Any) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"one")
    cells = [{"bytes": None, "path": str(tmp_path / f"{k}.png")} for k in (1, 2)]
    schema = Features({"p": datasets.Image()}).arrow_schema
    table = pa.table({"p": [*cells, {"bytes": b"two", "path": None}]}, schema=schema)
    keys = row_keys(Dataset(table), ["p"])
    assert keys[0] == keys[1] != keys[2]


def test_many_batches_add_up() -> None:
    count = 100_000
    data = Dataset.from_dict(
        {"n": np.arange(count) % 1000}, features=Features({"n": Value("int32")})
    )
    (seen,) = look(data)
    assert (seen.distinct, seen.counts, seen.high) == (1000, None, 999)
    assert repeated(row_keys(data, ["n"])) == count - 1000
