"""A budget's cut, and what is said where it keeps nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from curate.errors import NothingKeptError
from curate.pipeline.job import prepare
from curate.pipeline.score import cut, require_kept
from curate.recipe import load_recipe
from curate.selection.budget import Budget
from tests.job import curate


def test_the_recipes_budget_is_cut_by_unless_another_is_named(here: Path) -> None:
    job = prepare(load_recipe("recipe.yaml", ["selection.keep={count: 5}"]), torch.device("cpu"))
    values = np.arange(len(job.data.examples), dtype=float)
    assert np.flatnonzero(cut(job, values).kept).tolist() == [67, 68, 69, 70, 71]
    assert cut(job, values, Budget(count=7)).kept.sum() == 7


def test_a_threshold_that_no_score_reaches_is_an_error_with_the_highest(here: Path) -> None:
    recipe = load_recipe("recipe.yaml", ["selection.keep={threshold: 3.5}"])
    job = prepare(recipe, torch.device("cpu"))
    values = np.linspace(0, 1.25, len(job.data.examples))
    message = r"selection\.keep\.threshold: 3\.5 keeps no row; the highest score is 1\.25\."
    with pytest.raises(NothingKeptError, match=message):
        require_kept(job, values, cut(job, values))
    assert NothingKeptError.exit_code == 2


def test_nothing_kept_is_exit_code_2_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = "selection.keep={threshold: 1e9}"
    assert curate("recipe.yaml", "--out", "out", "--quiet", "--set", keep) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "selection.keep.threshold: 1000000000.0 keeps no row; the highest score is" in error
    assert "Every score is in out." in error
    assert [*Path("out").glob("scores.parquet")]


def test_a_baseline_that_keeps_nothing_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_nothing(*_: object) -> None:
        raise NothingKeptError("no row.")

    monkeypatch.setattr("curate.pipeline.evaluate.choose", keep_nothing)
    evaluation = "evaluation={seeds: [0], against: [loss]}"
    assert curate("recipe.yaml", "--out", "out", "--quiet", "--set", evaluation) == 1
    said = capsys.readouterr().err
    assert said.startswith("curate: out has what was kept and every score, but this failed: ")
    assert "evaluation.against: loss: no row" in said
    assert "--resume" not in said  # which would come to the same
