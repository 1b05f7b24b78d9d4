"""Shards that are written batch by batch, against what `datasets` itself writes."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from curate.output import shards
from curate.output.shards import batches, take, write_shards


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("L", (2, 2), shade).save(file, "png")
    return file.getvalue()


def table(folder: Path, count: int = 40) -> Dataset:
    """Numbers, lists, texts with gaps, a class, and pictures, some of them in files."""
    pictures = []
    for k in range(count):
        (folder / f"{k}.png").write_bytes(picture(k))
        inside = {"bytes": picture(k), "path": None}
        pictures.append(inside if k % 2 else {"bytes": None, "path": str(folder / f"{k}.png")})
    columns = {
        "x": np.arange(count, dtype=np.float32),
        "list": [[k] * (k % 3) for k in range(count)],
        "text": [None if k % 7 == 3 else f"text {k}" for k in range(count)],
        "label": [k % 3 for k in range(count)],
        "picture": pictures,
    }
    features = datasets.Features(
        {
            "x": datasets.Value("float32"),
            "list": datasets.Sequence(datasets.Value("int32")),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "picture": datasets.Image(),
        }
    )
    return Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("kind", ["whole", "some", "far apart", "parts"])
@pytest.mark.parametrize("small", [False, True])
def test_what_is_written_is_what_save_to_disk_writes(
    kind: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(tmp_path)
    if kind == "some":
        rows = rows.select([k for k in range(40) if k % 5])
    elif kind == "far apart":
        rows = rows.select([0, 39])
    elif kind == "parts":
        rows = datasets.concatenate_datasets([rows.select(range(7)), rows.select(range(7, 40))])
    if small:
        monkeypatch.setattr(shards, "EMBEDDED", 3)
        monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    kept = np.flatnonzero(np.arange(len(rows)) % 3 != 1)
    DatasetDict({"train": rows.select(kept.tolist())}).save_to_disk(str(tmp_path / "theirs"))
    write_shards(tmp_path / "ours", rows, kept)
    expected, found = (load_from_disk(str(tmp_path / w))["train"] for w in ("theirs", "ours"))
    assert found.features == expected.features
    raw = [d.with_format("arrow")[:] for d in (found, expected)]
    assert raw[0].to_pylist() == raw[1].to_pylist()
    assert raw[0].schema.equals(raw[1].schema)
    assert [*found.to_iterable_dataset()][-1]["label"] == expected[-1]["label"]
    files = sorted(path.name for path in (tmp_path / "ours" / "train").iterdir())
    assert len([name for name in files if name.endswith(".arrow")]) == (
        len(json.loads((tmp_path / "ours" / "train" / "state.json").read_text())["_data_files"])
    )
    assert (len(files) > 3) == (small and kind != "far apart")


def test_other_rows_have_another_fingerprint(tmp_path: Path) -> None:
    rows, seen = table(tmp_path), set()
    for name, kept in (("a", [0, 1]), ("b", [0, 2]), ("c", [0, 1])):
        write_shards(tmp_path / name, rows, np.array(kept))
        seen.add(load_from_disk(str(tmp_path / name))["train"]._fingerprint)
    assert len(seen) == 2


def test_nulls_within_lists_come_out_as_they_went_in(tmp_path: Path) -> None:
    turns = [[{"text": f"{k}", "calls": None}, {"text": "?", "calls": None}] for k in range(24)]
    rows = Dataset.from_dict({"turns": turns, "nothing": [None] * 24, "empty": [[None, None]] * 24})
    kept = np.arange(3, 24, 2)
    write_shards(tmp_path / "out", rows, kept)
    found = load_from_disk(str(tmp_path / "out"))["train"]
    assert found.features == rows.features
    assert [*found] == [*rows.select(kept.tolist())]


def test_batches_are_the_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_ROWS", 4)
    rows = Dataset.from_dict({"x": [*range(50)], "y": [*range(50)]}).select_columns(["x"])
    assert pa.concat_tables(batches(rows)).column_names == ["x"]
    shuffled = rows.select(np.random.default_rng(0).permutation(50))
    for data in (rows, rows.select([*range(3, 50, 2)]), shuffled):
        found = pa.concat_tables(batches(data)).column("x").to_pylist()
        assert found == data["x"][:]
    assert take(shuffled, np.array([4, 2])).column("x").to_pylist() == [*shuffled[[4, 2]]["x"]]
