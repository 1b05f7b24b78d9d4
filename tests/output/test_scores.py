"""Scores read part by part, against what the whole table says."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate.output import scores as module
from curate.output.directory import write_table
from curate.output.scores import SavedScores
from tests.output.made import lines

RANDOM = np.random.default_rng(0)
TABLE = lines(RANDOM.normal(size=50), RANDOM.random(50) < 0.4).with_columns(
    row=pl.int_range(50) * 3, influence=pl.int_range(50) / 10
)


@pytest.fixture(params=["file", "table", "shuffled"])
def saved(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SavedScores:
    monkeypatch.setattr(module, "AT_A_TIME", 7)
    if request.param == "table":
        return SavedScores(TABLE)
    shuffled = request.param == "shuffled"
    write_table(tmp_path / "scores.parquet", TABLE.sample(50, shuffle=True) if shuffled else TABLE)
    return SavedScores(tmp_path / "scores.parquet")


def test_figures_are_those_of_the_whole_table(saved: SavedScores) -> None:
    kept = TABLE.filter("kept")["score"]
    assert (len(saved), saved.kept, saved.first, saved.last) == (50, len(kept), 0, 147)
    assert (saved.lowest_kept, saved.highest_dropped) == (
        kept.min(),
        TABLE.filter(~pl.col("kept"))["score"].max(),
    )
    assert (saved.lowest, saved.highest) == (TABLE["score"].min(), TABLE["score"].max())
    assert saved.influences == TABLE["influence"].to_list()
    assert saved.finite
    assert saved.has_influences
    assert pl.concat(saved.parts()).equals(TABLE)
    assert pl.concat(saved.parts("rank", "row")).equals(TABLE.select("rank", "row"))


def test_some_lines_are_found_by_row_and_by_rank(saved: SavedScores) -> None:
    by_row = {line["row"]: line for line in TABLE.to_dicts()}
    assert saved.lines([9, 147, 1]) == {9: by_row[9], 147: by_row[147]}
    ordered = TABLE.sort("rank")["row"].to_list()
    assert saved.ranked([50, 1, 7]) == [ordered[0], ordered[6], ordered[49]]
    best = TABLE.filter("kept").sort("rank")["row"].to_list()
    worst = TABLE.filter(~pl.col("kept")).sort("rank", descending=True)["row"].to_list()
    assert saved.best(5, kept=True) == best[:5]
    assert saved.best(99, kept=False) == worst
    kept = TABLE.filter("kept")["row"].to_list()
    among = [row for row in best if kept.index(row) in (2, 5, 11)]
    assert saved.best(2, kept=True, among=np.array([2, 5, 11])) == among[:2]
    assert saved.places([kept[3], kept[8], 149]) == {kept[3]: 3, kept[8]: 8}
    assert saved.places([9, 147], among_all=True) == {9: 3, 147: 49}


@pytest.mark.parametrize("spoiled", ["row", "rank", "score", "clear"])
def test_what_is_not_whole_is_refused(spoiled: str) -> None:
    table = TABLE.clear()
    if spoiled != "clear":
        value = pl.lit(None) if spoiled == "score" else pl.lit(1)
        table = TABLE.with_columns(value.alias(spoiled))
    with pytest.raises(ValueError, match=r"once|missing|ranks"):
        SavedScores(table)


def test_a_report_makes_no_python_object_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows: dictionaries of those that are listed, floats of a sample."""
    many = lines(RANDOM.normal(size=200_000), RANDOM.random(200_000) < 0.5)
    many, made = many.with_columns(influence=pl.col("score")), list[int]()
    to_dicts, to_list = pl.DataFrame.to_dicts, pl.Series.to_list
    monkeypatch.setattr(pl.DataFrame, "to_dicts", lambda t: made.append(len(t)) or to_dicts(t))
    monkeypatch.setattr(pl.Series, "to_list", lambda s: made.append(len(s)) or to_list(s))
    saved = SavedScores(many)
    rows = saved.ranked(range(1, 200_001, 150))
    saved.lines(rows)
    assert len(saved.influences) <= module.SAMPLE
    assert len(rows) < sum(made) < 20_000
