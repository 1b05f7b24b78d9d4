"""`run_select`: the summary says what the directory holds, and nothing is left where it fails."""

import json
from pathlib import Path

import polars as pl
import pytest
from datasets import load_from_disk

from curate.errors import NothingKeptError
from curate.output.directory import MARK
from curate.pipeline.select import run_select
from curate.recipe import Recipe, load_recipe
from curate.runtime.progress import Phases
from curate.selection.ranking import auroc


class Recorder:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[dict[str, float], int]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((dict(metrics), step))


def recipe(*overrides: str) -> Recipe:
    return load_recipe("recipe.yaml", overrides)


def test_the_summary_is_what_the_directory_holds(here: Path) -> None:
    recorder, phases = Recorder(), Phases()
    summary = run_select(recipe(), here / "out", phases=phases, trackers=[recorder])
    table = pl.read_parquet(here / "out/scores.parquet")
    assert summary["kept"] == table["kept"].sum() == len(load_from_disk("out")["train"])
    assert summary["candidates"] == len(table) == 72
    written = json.loads((here / "out" / MARK).read_text())
    assert (
        written.items() >= {k: v for k, v in summary.items() if k not in ("out", "seconds")}.items()
    )
    assert set(summary["seconds"]) == set(phases.seconds) >= {"read", "write", "score (look_ahead)"}
    windows = pl.read_parquet(here / "out/windows.parquet")
    told = [step for metrics, step in recorder.lines if "window/target_loss" in metrics]
    assert told == windows["first_step"].to_list()
    last, step = recorder.lines[-1]
    assert (last["run/kept"], step) == (summary["kept"], summary["steps"])


def test_noise_is_counted_among_what_is_kept(here: Path) -> None:
    summary = run_select(recipe(), here / "out")
    planted = load_from_disk("out")["train"].to_polars()
    noise = summary["noise"]
    assert 0 < noise["kept"] < noise["planted"] == round(0.2 * 72)
    assert 0 <= noise["auroc"] <= 1
    assert len(planted) == summary["kept"]
    assert auroc(pl.Series([0.0, 1.0]).to_numpy(), pl.Series([False, True]).to_numpy()) == 1


def test_a_threshold_that_keeps_nothing_leaves_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    with pytest.raises(NothingKeptError, match=r"selection.keep.threshold: 99.0 keeps no row"):
        run_select(recipe("selection.keep={threshold: 99}"), here / "out")
    assert sorted(here.iterdir()) == before
    assert NothingKeptError.exit_code == 2
