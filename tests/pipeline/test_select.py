"""`run_select`: the summary says what the directory holds, and what fails takes nothing with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from datasets import load_from_disk
from polars.testing import assert_frame_equal

from curate.errors import NonFiniteError, NothingKeptError
from curate.output import directory, page, scores, shards
from curate.output.directory import MARK
from curate.output.saved_run import read_run
from curate.pipeline import evaluate, select
from curate.pipeline.select import run_select
from curate.recipe import Recipe, load_recipe
from curate.runtime import large
from curate.runtime.progress import Phases
from curate.runtime.resume import folder_of
from curate.selection import ranking
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


@pytest.mark.parametrize(
    "settings", [["selection.rounds=1"], ["selection.rounds=4"], ["selection.keep={count: 7}"]]
)
def test_what_lies_in_files_comes_to_the_same(
    here: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays in files and gone through by pieces, rows and lines written a few at a time."""
    given = recipe("selection.horizon=1", *settings)
    run_select(given, here / "small")
    constants = {
        large: {"SMALL": 16, "PIECE": 17},
        ranking: {"AT_ONCE": 20, "BUCKETS": 3},
        shards: {"MOST_ROWS": 5, "SHARD_BYTES": 50},
        directory: {"ROW_GROUP": 11},
        scores: {"AT_A_TIME": 7},
    }
    for module, values in constants.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    run_select(given, here / "large")
    for name in ("scores.parquet", "windows.parquet"):
        few, many = (pl.read_parquet(here / out / name) for out in ("small", "large"))
        assert_frame_equal(many, few, rel_tol=1e-9)
    rows = [load_from_disk(str(here / out))["train"].to_list() for out in ("small", "large")]
    assert rows[0] == rows[1]
    assert len([*(here / "large" / "train").glob("*.arrow")]) > 1
    told = [json.loads((here / out / MARK).read_text()) for out in ("small", "large")]
    for column, lines in told[0]["composition"].items():
        for one, other in zip(lines, told[1]["composition"][column], strict=True):
            assert one.pop("value") == other.pop("value")
            assert one == pytest.approx(other, rel=1e-9)
    assert told[0]["error"] == pytest.approx(told[1]["error"], rel=1e-9)


def test_noise_is_counted_among_what_is_kept(here: Path) -> None:
    summary = run_select(recipe(), here / "out")
    planted = load_from_disk("out")["train"].to_polars()
    noise = summary["noise"]
    assert 0 < noise["kept"] < noise["planted"] == round(0.2 * 72)
    assert 0 <= noise["auroc"] <= 1
    assert len(planted) == summary["kept"]
    assert auroc(pl.Series([0.0, 1.0]).to_numpy(), pl.Series([False, True]).to_numpy()) == 1


def test_a_threshold_that_keeps_nothing_leaves_the_scores(here: Path) -> None:
    nothing, out = recipe("selection.keep={threshold: 99}"), here / "out"
    for resume in (False, True):  # the second time nothing is computed
        with pytest.raises(NothingKeptError, match=r"threshold: 99.0 keeps no row.*is in .*out"):
            run_select(nothing, out, resume=resume)
    assert not folder_of(out).exists()
    run = read_run(out)
    assert (len(run.scores), run.kept, run.dropped) == (72, 0, [])
    assert run.has_influences
    assert not (out / "train").exists()


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


FULL = OSError(28, "No space left on device")
EVALUATED = "evaluation={seeds: [0, 1], against: [everything, random]}"
JUDGED = "selection.judge=true"
LATER = {
    "worth": (select, "_weigh", [MemoryError(), FULL]),
    "evaluation": (select, "evaluate", [RuntimeError("CUDA out of memory"), FULL]),
    "dropped.parquet": (page, "store_dropped", [MemoryError(), FULL]),
    "report.html": (page, "render", [FULL]),
    "README.md": (page, "write_card", [FULL]),
}
"""Parts of a result, where each is made, and how it may fail."""


@pytest.mark.parametrize(
    ("part", "error"), [(part, error) for part, (_, _, errors) in LATER.items() for error in errors]
)
def test_a_part_that_fails_takes_nothing_with_it_and_is_made_again(
    here: Path, part: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, _ = LATER[part]
    whole, out = recipe(EVALUATED, JUDGED), here / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(error))
        for resume in (False, True):  # as often as one likes
            summary = run_select(whole, out, resume=resume)
            assert [*summary["missing"]] == [part]
            assert type(error).__name__ in summary["missing"][part]
    assert len(load_from_disk(str(out))["train"]) == summary["kept"]
    assert len(read_run(out).scores) == 72
    files = {path.name for path in out.iterdir()}
    assert files >= {"dropped.parquet", "report.html", "README.md"} - {part}
    before = (out / "scores.parquet").read_bytes()
    again = run_select(whole, out, resume=True)
    assert "missing" not in again
    assert {"worth", "evaluation"} <= again.keys()
    assert (out / "scores.parquet").read_bytes() == before
    assert {path.name for path in out.iterdir()} >= {"dropped.parquet", "report.html", "README.md"}
    assert not folder_of(out).exists()


@pytest.mark.parametrize(
    "error", [TypeError("no such type"), KeyError("figure"), pl.exceptions.PanicException("polars")]
)
def test_a_report_that_would_fail_again_is_not_left_to_be_resumed(
    here: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "out"
    monkeypatch.setattr(page, "render", failing(error))
    for resume, where, other in (
        (False, "missing", "failed"),
        (True, "failed", "missing"),
        (True, "failed", "missing"),
    ):
        summary = run_select(recipe(), out, resume=resume)
        assert other not in summary
        assert type(error).__name__ in summary[where]["report.html"]
    assert len(load_from_disk(str(out))["train"]) == summary["kept"]


def test_a_provenance_that_cannot_be_written_again_loses_no_retraining(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = recipe(EVALUATED), here / "out"
    with monkeypatch.context() as patch:
        patch.setattr(select, "write_whole_text", failing(FULL))
        assert [*run_select(whole, out)["missing"]] == [MARK]
    assert (out / "report.html").exists()
    monkeypatch.setattr(evaluate, "retrain", None)  # nothing is trained again
    again = run_select(whole, out, resume=True)
    assert "missing" not in again
    assert len(again["evaluation"]) == 3


def test_a_seed_that_diverges_leaves_the_others_and_is_not_trained_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain, seeds = evaluate.retrain, list[int]()

    def diverges(job: Any, kept: Any, seed: int, *rest: Any) -> Any:
        seeds.append(seed)
        if seed == 1 and kept.all():
            raise NonFiniteError("retraining with seed 1 ends in a loss of nan.")
        return retrain(job, kept, seed, *rest)

    monkeypatch.setattr(evaluate, "retrain", diverges)
    whole = recipe(EVALUATED)
    summary = run_select(whole, here / "out")
    assert [*summary["failed"]] == ["evaluation of everything with seed 1"]
    assert {row["trained_on"]: len(row["loss"]["values"]) for row in summary["evaluation"]} == {
        "look_ahead": 2,
        "everything": 1,
        "random": 2,
    }
    assert sorted(seeds) == [0, 0, 0, 1, 1, 1]
    assert run_select(whole, here / "out", resume=True)["failed"] == summary["failed"]
    assert len(seeds) == 6
    assert not folder_of(here / "out").exists()


def test_where_judging_diverges_every_row_is_kept_and_it_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_weigh", failing(NonFiniteError("a loss of nan.")))
    summary = run_select(recipe("selection.keep={auto: true}", JUDGED), here / "out")
    assert summary["kept"] == 72
    assert "how much to keep is not known, and every row is kept" in summary["failed"]["worth"]


def test_interrupted_after_choosing_it_says_what_is_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(select, "evaluate", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt, match="out has what was kept and every score"):
            run_select(recipe(EVALUATED), here / "out")
    assert len(load_from_disk("out")["train"]) == 36
    assert "evaluation" in run_select(recipe(EVALUATED), here / "out", resume=True)


def test_an_evaluation_that_compares_nothing_is_not_made_without_test_rows(here: Path) -> None:
    summary = run_select(recipe("evaluation.against=[]", "data.test=null"), here / "out")
    assert "evaluation" not in summary
    assert "missing" not in summary
    measured = run_select(recipe("evaluation={against: [], seeds: [0]}"), here / "measured")
    assert [row["trained_on"] for row in measured["evaluation"]] == ["look_ahead"]
