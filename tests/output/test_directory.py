"""What a selection leaves, and whether it is still that of its data."""

import json
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset, load_from_disk

from curate.errors import UserError
from curate.output.directory import (
    Selection,
    made_with,
    provenance,
    refuse_other_data,
    saved_influences,
    write_selection,
)
from curate.recipe import fingerprint, load_recipe
from tests.output.made import ON_LISTS, WINDOWS

TABLE = Dataset.from_dict({"x": [[0.0], [1.0], [2.0]], "label": ["a", "b", "c"]})
SCORES = pl.DataFrame(
    {
        "row": [7, 3, 5],
        "influence": [0.1, 0.3, 0.2],
        "score": [1.0, 3.0, 2.0],
        "kept": [False, True, True],
    }
)
"""Not in the order of the table, whose rows are 3, 5 and 7 of the source."""


def test_the_rows_kept_are_those_that_the_scores_say(tmp_path: Path) -> None:
    write_selection(tmp_path, Selection(TABLE, SCORES, {"steps": 3}))
    assert load_from_disk(str(tmp_path))["train"]["label"][:] == ["a", "b"]
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(SCORES)
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"steps": 3}
    assert not (tmp_path / "recipe.yaml").exists()
    assert not (tmp_path / "windows.parquet").exists()
    assert saved_influences(tmp_path).equals(SCORES.select("row", "influence"))


def test_a_recipe_and_windows_are_left_where_there_are_some(tmp_path: Path) -> None:
    write_selection(tmp_path, Selection(TABLE, SCORES, {}, ON_LISTS, pl.DataFrame(WINDOWS)))
    assert load_recipe(tmp_path / "recipe.yaml") == ON_LISTS
    windows = pl.read_parquet(tmp_path / "windows.parquet")
    assert windows.to_dicts() == WINDOWS


def test_provenance_has_what_a_result_was_made_with() -> None:
    sources = {"rows.parquet": {"rows": 3}}
    made = provenance(ON_LISTS, sources)
    assert made["sources"] == sources
    assert made["recipe_fingerprint"] == fingerprint(ON_LISTS)
    assert made["seeds"] == {"data": ON_LISTS.data.seed, "training": ON_LISTS.training.seed}
    assert {"python", "curate", "torch"} <= made["versions"].keys()
    assert made_with().items() <= made.items()


def test_outside_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert made_with()["git_commit"] is None


def test_other_data_is_refused(tmp_path: Path) -> None:
    sources = {"a": {"rows": 3}, "b": {"rows": 4}}
    (tmp_path / "provenance.json").write_text(json.dumps({"sources": sources}))
    refuse_other_data(tmp_path, {"b": {"rows": 4}})
    with pytest.raises(UserError, match="b has changed since it was scored; select again"):
        refuse_other_data(tmp_path, {"a": {"rows": 3}, "b": {"rows": 5}})
    with pytest.raises(UserError, match="c has changed"):
        refuse_other_data(tmp_path, {"c": {"rows": 3}})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sources": 3}'])
def test_a_directory_without_provenance_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(UserError, match="is not a directory that curate select wrote"):
        refuse_other_data(tmp_path, {})


def test_scores_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\.parquet: cannot be read"):
        saved_influences(tmp_path)
    SCORES.drop("influence").write_parquet(tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=r"scores\.parquet: cannot be read"):
        saved_influences(tmp_path)
