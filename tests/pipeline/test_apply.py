"""Applying a selection to further rows: as a stream, part by part, resumed."""

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from curate import apply, check_recipe, run_select
from curate.datasets import streaming
from curate.errors import DataError, OutputError, UnfinishedError, UserError
from curate.pipeline import apply as room
from curate.pipeline.scorer import Scorer
from curate.runtime.resume import folder_of

COUNT = 400


def points(count: int, seed: int) -> pl.DataFrame:
    """Two classes, one point in five of the wrong one."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, count)
    x = generator.normal(size=(count, 4)) + 2 * label[:, None]
    wrong = generator.random(count) < 0.2
    columns: dict[str, Any] = {f"x{k}": x[:, k] for k in range(4)}
    names = np.array(["no", "yes"])[np.where(wrong, 1 - label, label)]
    return pl.DataFrame({"id": np.arange(count), **columns, "label": names, "wrong": wrong})


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection")
    points(COUNT, 0).write_parquet(folder / "train.parquet")
    points(100, 1).filter(~pl.col("wrong")).write_parquet(folder / "validation.parquet")
    recipe = {
        "data": {
            "train": str(folder / "train.parquet"),
            "validation": str(folder / "validation.parquet"),
            "columns": {"features": ["x*"], "label": "label"},
            "standardize": True,
        },
        "model": {"kind": "mlp", "hidden": [8]},
        "training": {"epochs": 4, "optimizer": {"kind": "adamw", "lr": 1e-2}},
        "selection": {"keep": {"fraction": 0.8}, "judge": False},
        "score": {"sample": 200},
    }
    run_select(check_recipe(recipe), folder / "kept")
    return folder / "kept"


@pytest.fixture
def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Further rows in three files, to be scored fifty at a time."""
    monkeypatch.setattr(room, "ROWS", 50)
    for k in range(3):
        points(130, 10 + k).write_parquet(tmp_path / f"more-{k}.parquet")
    return tmp_path / "more-*.parquet"


def everything(more: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(more.with_name(f"more-{k}.parquet")) for k in range(3))


def bits(folder: Path) -> dict[str, bytes]:
    """What all files hold, but for a run's name and the time it took."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    provenance = json.loads(files.pop("provenance.json"))
    plain = {key: value for key, value in provenance.items() if key not in ("run", "seconds")}
    return files | {"provenance.json": json.dumps(plain).encode()}


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], None]:
    """Have the scorer die when it is called for the n-th time; returns what mends it."""
    whole, calls = Scorer.scores, iter(range(at))

    def scores(self: Scorer, *rows: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return whole(self, *rows)

    monkeypatch.setattr(Scorer, "scores", scores)
    return lambda: monkeypatch.setattr(Scorer, "scores", whole)


def test_rows_are_those_that_the_scorer_keeps(selection: Path, more: Path, tmp_path: Path) -> None:
    summary = apply(selection, str(more), tmp_path / "out")
    rows = everything(more)
    expected = Scorer(selection)(rows)
    scores = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    assert scores["row"].to_list() == [*range(390)]
    for name in ("score", "low", "high"):
        assert np.allclose(scores[name], expected[name], atol=1e-6)
    assert scores["kept"].to_list() == expected["kept"].to_list()
    kept = load_from_disk(str(tmp_path / "out"))["train"]
    assert kept.column_names == rows.columns
    assert kept["id"][:] == rows.filter(expected["kept"])["id"].to_list()
    assert summary["kept"] == len(kept)
    assert summary["rows"] == 390
    left = rows.with_columns(kept=expected["kept"]).group_by("kept").agg(pl.col("wrong").mean())
    share = dict(left.iter_rows())
    assert share[False] > 0.6
    assert share[True] < 0.15


def test_candidates_get_the_scores_of_their_selection(selection: Path, tmp_path: Path) -> None:
    apply(selection, str(selection.with_name("train.parquet")), tmp_path / "out")
    own = pl.read_parquet(selection / "scores.parquet")
    again = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    assert np.allclose(own["score"], again["score"], atol=1e-6)
    assert own["kept"].to_list() == again["kept"].to_list()


def test_killed_ten_times_it_ends_in_the_same_bits(
    selection: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(selection, str(more), tmp_path / "whole")
    draws, died = random.Random(0), 0
    for k in range(10):
        out = tmp_path / "resumed" / str(k)
        scored = 0
        while True:
            mend = dying(monkeypatch, draws.randrange(1, 4))
            try:
                apply(selection, str(more), out, resume=scored > 0)
                break
            except KeyboardInterrupt:
                died += 1
                scored = len([*folder_of(out).glob("part-*.json")])
                assert scored
            finally:
                mend()
        expected = bits(tmp_path / "whole")
        assert bits(out) == expected
        assert not folder_of(out).exists()
    assert died >= 20


def test_rows_that_changed_under_it_are_refused_and_those_to_come_are_not(
    selection: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = dying(monkeypatch, 3)  # 150 rows, into the second file
    with pytest.raises(KeyboardInterrupt):
        apply(selection, str(more), tmp_path / "out")
    mend()
    last, first = more.with_name("more-2.parquet"), more.with_name("more-0.parquet")
    points(130, 99).write_parquet(last)
    before = first.read_bytes()
    points(130, 98).write_parquet(first)
    with pytest.raises(UnfinishedError, match="rows 0 to 49 have changed"):
        apply(selection, str(more), tmp_path / "out", resume=True)
    first.write_bytes(before)
    summary = apply(selection, str(more), tmp_path / "out", resume=True)
    assert summary["rows"] == 390
    with pytest.raises(OutputError, match="exists already"):
        apply(selection, str(more), tmp_path / "out")
    assert apply(selection, str(more), tmp_path / "out", resume=True)["kept"] == summary["kept"]
    points(130, 97).write_parquet(last)
    with pytest.raises(UserError, match="has changed since"):
        apply(selection, str(more), tmp_path / "out", resume=True)


def test_a_row_that_cannot_be_scored_is_named_and_costs_nothing_that_was(
    selection: Path, more: Path, tmp_path: Path
) -> None:
    file = more.with_name("more-1.parquet")
    good = pl.read_parquet(file)
    bad = good.with_columns(x1=pl.when(pl.col("id") == 100).then(None).otherwise("x1"))
    bad.write_parquet(file)
    with pytest.raises(DataError, match=r"from row 200: column x1 is null at row 30"):
        apply(selection, str(more), tmp_path / "out")
    assert len([*folder_of(tmp_path / "out").glob("part-*.json")]) == 4
    good.write_parquet(file)
    apply(selection, str(more), tmp_path / "out", resume=True)
    apply(selection, str(more), tmp_path / "whole")
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def test_a_damaged_part_is_made_again(
    selection: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(selection, str(more), tmp_path / "whole")
    mend = dying(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        apply(selection, str(more), tmp_path / "out")
    mend()
    part = folder_of(tmp_path / "out") / "part-000001.arrow"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    apply(selection, str(more), tmp_path / "out", resume=True)
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def test_parquet_is_read_where_it_lies_and_other_files_go_through_arrow(
    selection: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = everything(more)
    rows.write_ndjson(tmp_path / "more.jsonl")
    rows.write_csv(tmp_path / "more.csv")
    for name in ("more.jsonl", "more.csv"):
        apply(selection, str(tmp_path / name), tmp_path / f"{name}.out")
    points(130, 10).drop("wrong").write_parquet(tmp_path / "other-0.parquet")
    points(130, 11).write_parquet(tmp_path / "other-1.parquet")
    assert apply(selection, str(tmp_path / "other-*.parquet"), tmp_path / "other")["rows"] == 260
    monkeypatch.delattr(streaming, "read")
    apply(selection, str(more), tmp_path / "out")
    expected = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    for name in ("more.jsonl", "more.csv"):
        scores = pl.read_parquet(tmp_path / f"{name}.out" / "scores.parquet")
        assert np.allclose(scores["score"], expected["score"], atol=1e-6)


def test_columns_go_out_as_they_came_in(selection: Path, tmp_path: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (2, 2), 7).save(buffer, "png")
    rows = points(30, 3).to_dict(as_series=False)
    kinds = {"label": datasets.ClassLabel(names=["yes", "no"]), "picture": datasets.Image()}
    table = datasets.Dataset.from_dict(
        rows | {"picture": [{"bytes": buffer.getvalue(), "path": None}] * 30}
    )
    table = table.cast(datasets.Features({**table.features, **kinds}))
    table.save_to_disk(str(tmp_path / "more"))
    apply(selection, str(tmp_path / "more"), tmp_path / "out")
    kept = load_from_disk(str(tmp_path / "out"))["train"]
    assert kept.features == table.features
    assert kept[0]["picture"].getpixel((0, 0)) == 7
    names = pl.read_parquet(tmp_path / "out" / "scores.parquet")
    plain = Scorer(selection)(points(30, 3))
    assert np.allclose(names["score"], plain["score"], atol=1e-6)


def test_nothing_kept_leaves_the_scores(selection: Path, tmp_path: Path) -> None:
    rows = points(200, 5)
    scored = Scorer(selection)(rows)
    rows.filter(~scored["kept"]).write_parquet(tmp_path / "more.parquet")
    summary = apply(selection, str(tmp_path / "more.parquet"), tmp_path / "out")
    assert summary["kept"] == 0
    assert not (tmp_path / "out" / "train").exists()
    assert len(pl.read_parquet(tmp_path / "out" / "scores.parquet")) == summary["rows"]


def test_a_row_makes_us_read_no_file(selection: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"not a picture")
    folder = tmp_path / "data"
    folder.mkdir()
    table = datasets.Dataset.from_dict(
        points(3, 3).to_dict(as_series=False) | {"picture": [str(secret)] * 3}
    ).cast_column("picture", datasets.Image(decode=False))
    table.to_parquet(folder / "more.parquet")
    raw = pa.table({"path": [str(secret)] * 3, "bytes": pa.nulls(3, pa.binary())})
    plain = pl.read_parquet(folder / "more.parquet").drop("picture").to_arrow()
    plain = plain.append_column(
        "picture",
        pa.StructArray.from_arrays(
            [raw["bytes"].combine_chunks(), raw["path"].combine_chunks()], ["bytes", "path"]
        ),
    )
    schema = table.features.arrow_schema
    pq.write_table(plain.select(schema.names).cast(schema), folder / "more.parquet")
    with pytest.raises(DataError, match="which is not below"):
        apply(selection, str(folder / "more.parquet"), tmp_path / "out")
    secret.unlink()  # nobody looks whether it is there, either
    with pytest.raises(DataError, match="which is not below"):
        apply(selection, str(folder / "more.parquet"), tmp_path / "other")


def test_what_cannot_be_applied_is_refused(selection: Path, more: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"has nothing to score other rows with; select with"):
        apply(tmp_path, str(more), tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        apply(selection, str(tmp_path / "none.parquet"), tmp_path / "out")
    everything(more).drop("x3").write_parquet(tmp_path / "less.parquet")
    with pytest.raises(DataError, match="there is no column x3"):
        apply(selection, str(tmp_path / "less.parquet"), tmp_path / "out")
    everything(more).clear().write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="has no rows"):
        apply(selection, str(tmp_path / "empty.parquet"), tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out")
