"""A run read back: its rows, those that are listed and stored, and what damage is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset, load_from_disk

from curate.cli.main import cli, run
from curate.errors import OutputError
from curate.output import saved_run
from curate.output.page import render
from curate.output.saved_run import LISTED, SavedRun, listed, read_run
from tests.output.made import HOSTILE, ON_TEXT, made


def content(saved: SavedRun, row: int) -> dict[str, str]:
    (view,) = saved.views([row])
    return {column.name: column.text for column in view.shown}


@pytest.mark.parametrize("count", [1, 2, 5, 1500, 1501, 4000])
@pytest.mark.parametrize("keep", [0, 0.5, 1])
def test_what_is_listed_is_in_order_and_without_repetition(count: int, keep: float) -> None:
    ranks = listed(count, round(keep * count))
    assert ranks == sorted(set(ranks))
    assert len(ranks) == min(count, LISTED)
    assert {1, count} <= set(ranks) <= set(range(1, count + 1))


def test_rows_are_read_in_the_order_asked_for(on_text: Path) -> None:
    saved = read_run(on_text)
    views = list(saved.views([21, 10, 16]))
    assert [view.line["row"] for view in views] == [21, 10, 16]
    assert [view.line["rank"] for view in views] == [12, 1, 7]
    assert [view.why for view in views] == [
        "dropped, below the budget: rank 12 of 12, of which 6 are kept",
        "kept, top by score: rank 1 of 12",
        "dropped, below the budget: rank 7 of 12, of which 6 are kept",
    ]
    texts = ("text number 11", HOSTILE[0], HOSTILE[6])
    assert all(v.preview.startswith(text) for v, text in zip(views, texts, strict=True))
    assert all(view.label is None and view.picture is None for view in views)
    assert (saved.kept, saved.unstored, saved.source) == (6, 0, "rows.parquet")


def test_dropped_rows_are_stored_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_run, "STORED_BYTES", 60_000)
    table = Dataset.from_dict({"text": ["x" * 1000] * 1200, "row": ["id"] * 1200})
    saved = read_run(made(tmp_path / "run", table, ON_TEXT))
    worst = list(range(1210 - saved_run.AT_A_TIME, 1210))  # at least so many
    assert (saved.kept, saved.dropped) == (600, worst)
    assert saved.places([609, 1209, 700]) == {609: 599, 1209: 599 + len(worst)}
    assert content(saved, 1209) == {"text": "x" * 1000, "row": "id"}
    assert content(saved, 610) == {}
    assert saved.unstored == 600 - len(worst)
    assert "Its content is not stored here" in render(saved)  # of borderline rows
    by_name = pl.read_parquet(tmp_path / "run" / "dropped.parquet")
    assert by_name["_row"].to_list() == worst


def test_a_directory_that_curate_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was not written by curate select"):
        read_run(tmp_path)
    with pytest.raises(OutputError, match="no such directory"):
        read_run(tmp_path / "nothing")


def rewritten(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], object]:
    return lambda path: change(pl.read_parquet(path)).write_parquet(path)


def halved(path: Path) -> object:
    return path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def provenance(**changes: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_most_rows(train: Path) -> object:
    other = train.with_name("other")
    load_from_disk(str(train)).select([0]).save_to_disk(str(other))
    shutil.rmtree(train)
    return other.rename(train)


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    ("scores.parquet", halved),
    ("scores.parquet", lambda path: path.write_bytes(b"")),
    ("scores.parquet", lambda path: path.write_bytes(b"PAR1" + b"\0" * 200 + b"PAR1")),
    ("scores.parquet", rewritten(lambda t: t.drop("score"))),
    ("scores.parquet", rewritten(lambda t: t.with_columns(score=pl.lit("high")))),
    ("scores.parquet", rewritten(lambda t: t.with_columns(row=pl.lit(3)))),
    ("scores.parquet", rewritten(lambda t: t.with_columns(kept=pl.lit(None, pl.Boolean)))),
    ("scores.parquet", rewritten(lambda t: t.clear())),
    ("train", without_most_rows),
    ("train", lambda path: shutil.rmtree(path)),
    ("train/data-00000-of-00001.arrow", halved),
    ("train/state.json", lambda path: path.write_text("{}")),
    ("windows.parquet", halved),
    ("windows.parquet", rewritten(lambda t: t.drop("steps"))),
    ("dropped.parquet", halved),
    ("dropped.parquet", rewritten(lambda t: t.with_columns(row=pl.lit(10)))),
    ("recipe.yaml", lambda path: path.write_text("data: 3")),
    ("recipe.yaml", lambda path: path.write_text("data: [")),
    ("provenance.json", halved),
    ("provenance.json", lambda path: path.write_text("[]")),
    ("provenance.json", provenance(seconds="long")),
    ("provenance.json", provenance(evaluation=[{"trained_on": "x", "rows": 3, "loss": 0.2}])),
    ("provenance.json", provenance(composition={"label": [["a", 1, 2]]})),
]


@pytest.mark.parametrize(("name", "spoil"), DAMAGES)
def test_damage_is_told_in_a_line(
    copied: Path, capsys: pytest.CaptureFixture[str], name: str, spoil: Callable[[Path], object]
) -> None:
    before = (copied / "report.html").read_bytes()
    spoil(copied / name)
    for command in ("inspect", "report"):
        assert run(cli, [command, str(copied)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{copied / name.split('/')[0]}: " in line
    assert (copied / "report.html").read_bytes() == before
