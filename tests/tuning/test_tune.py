"""`curate tune`: what it finds, what it leaves, and that nothing measured is measured again."""

import json
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from optuna.trial import TrialState

import curate
from curate.cli.main import cli, run
from curate.cli.summary import describe_tuning
from curate.errors import RunError
from curate.influence import mean_metrics
from curate.output.verdict import worth_line
from curate.pipeline.evaluate import retrain
from curate.pipeline.job import prepare
from curate.pipeline.select import run_select
from curate.recipe import Keep, load_recipe
from curate.runtime.progress import Phases
from curate.trajectory import forward_step
from curate.tuning import Tuned, study
from curate.tuning import trials as trials_module
from curate.tuning import tune as tuning
from curate.tuning.grid import Pair
from curate.tuning.trials import Trials, divide, with_pair
from tests.conftest import RENDER
from tests.job import RECIPE, rows, sets

GRID = (
    "tune={horizons: [1, 4, full], learning_rates: [1e-3, 1e-2, 5e-2], budget: 0.6, seeds: [0, 1]}"
)


SMALL = "tune={horizons: [1, 4], learning_rates: [1e-3, 1e-2], budget: 1.0, seeds: [0]}"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def recipe(*overrides: str) -> Any:
    return load_recipe("recipe.yaml", (GRID, *overrides))


def tune(*arguments: str) -> int:
    return run(cli, ["tune", "recipe.yaml", *sets(GRID), *arguments])


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and the recipe, and in out/ the tuning that most tests look at."""
    folder = tmp_path_factory.mktemp("tuned")
    rows().to_parquet(str(folder / "rows.parquet"))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def once(there: Path) -> Tuned:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setattr(Figure, "savefig", RENDER)
        torch.set_num_threads(1)
        return curate.tune(recipe(), there / "out")


@pytest.fixture
def tuned(there: Path, once: Tuned, monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """That tuning, and its place is where a test is."""
    monkeypatch.chdir(there)
    return once


def finished(table: pl.DataFrame) -> list[dict[str, Any]]:
    return table.filter(pl.col("outcome").is_in(["best", "beaten"])).to_dicts()


def test_the_best_pair_is_the_one_whose_selection_retrains_best_on_rows_no_score_saw(
    there: Path, tuned: Tuned
) -> None:
    """Every run's choice, trained again and judged on the other part."""
    runs = finished(tuned.table)
    assert len(runs) >= 2
    job = prepare(recipe(), torch.device("cpu"))
    scoring, judging = divide(job.data.validation, 0.5, job.recipe.data.seed + 1)
    half = replace(job.data, validation=scoring)
    seen = set(scoring["validation"].rows.tolist())
    judges = set(judging["validation"].rows.tolist())
    assert not seen & judges
    assert seen | judges == set(job.data.validation["validation"].rows.tolist())
    for line in runs:
        pair = Pair(line["horizon"], line["learning_rate"])
        own = replace(job, recipe=with_pair(job.recipe, pair, job.total_steps()), data=half)
        table = pl.read_parquet(
            there / f"out/runs/K{pair.horizon}-lr{pair.learning_rate:g}.parquet"
        )
        kept = table["kept"].to_numpy()
        values = [
            retrain(own, kept, seed, judging, lambda: None)["validation"]["loss"] for seed in (0, 1)
        ]
        assert line["values"] == pytest.approx(values, rel=1e-6)
        assert line["value"] == pytest.approx(np.mean(values), rel=1e-6)
    best = min(runs, key=lambda line: line["value"])
    assert tuned.pair == Pair(best["horizon"], best["learning_rate"])
    assert best["outcome"] == "best"


def test_what_a_run_keeps_is_what_select_keeps_with_that_part_of_the_validation_set(
    there: Path, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = curate.pipeline.select.prepare

    def with_half(recipe: Any, *others: Any) -> Any:
        job = real(recipe, *others)
        half, _ = divide(job.data.validation, 0.5, recipe.data.seed + 1)
        return replace(job, data=replace(job.data, validation=half))

    monkeypatch.setattr("curate.pipeline.select.prepare", with_half)
    run_select(tuned.recipe, there / "selected")
    selected = pl.read_parquet(there / "selected/scores.parquet")["kept"]
    name = f"out/runs/K{tuned.pair.horizon}-lr{tuned.pair.learning_rate:g}.parquet"
    assert selected.equals(pl.read_parquet(there / name)["kept"])


def test_it_ends_with_a_recipe_a_table_a_picture_and_a_test_of_the_best_alone(
    there: Path, tuned: Tuned
) -> None:
    assert (there / "out/tune.png").read_bytes().startswith(b"\x89PNG")
    table = pl.read_parquet(there / "out/tune.parquet")
    assert table.equals(tuned.table)
    assert len(table) == 3 + 9
    pairs = table.filter(pl.col("horizon").is_not_null())
    assert (pairs["signal"] > 0).all()
    assert (pairs["probes"] > 0).all()
    summary = json.loads((there / "out/tune.json").read_text())
    assert summary["learning_rate"] == tuned.pair.learning_rate
    assert summary["passes"] == pytest.approx(table["passes"].sum())
    assert summary["passes"] <= 0.6 * summary["grid_passes"]
    again = load_recipe(there / "out/recipe.yaml")
    assert again == tuned.recipe
    assert again.tune is None
    assert again.training.optimizer.lr == tuned.pair.learning_rate
    assert again.selection.probing == 0.2
    kept = pl.read_parquet(
        there / f"out/runs/K{tuned.pair.horizon}-lr{tuned.pair.learning_rate:g}.parquet"
    )["kept"].to_numpy()
    job = prepare(tuned.recipe, torch.device("cpu"))
    assert job.data.test is not None
    assert tuned.test is not None
    for name, mask in (("kept", kept), ("everything", np.ones(len(kept), dtype=bool))):
        for seed, found in enumerate(tuned.test[name]):
            expected = retrain(job, mask, seed, {"test": job.data.test}, lambda: None)["test"]
            assert found == pytest.approx(expected)


def test_it_ends_with_what_the_choice_is_worth_beside_everything_at_its_own_learning_rate(
    there: Path, tuned: Tuned
) -> None:
    """The gain in the verdict is that of two trainings, each stopped by the rows that judge."""
    worth = tuned.worth
    assert worth is not None
    losses = {lr: value for lr, value in tuned.everything.items() if value is not None}
    assert tuned.suits_everything == min(losses, key=lambda lr: losses[lr])
    job = prepare(recipe(), torch.device("cpu"))
    _, judging = divide(job.data.validation, 0.5, job.recipe.data.seed + 1)
    assert worth["judging"] == len(judging["validation"])
    name = f"out/runs/K{tuned.pair.horizon}-lr{tuned.pair.learning_rate:g}.parquet"
    kept = pl.read_parquet(there / name)["kept"].to_numpy()
    rates = (tuned.pair.learning_rate, tuned.suits_everything)
    best = []
    for places, lr in zip((np.flatnonzero(kept), np.arange(len(kept))), rates, strict=True):
        at = replace(
            job, recipe=with_pair(job.recipe, Pair(tuned.pair.horizon, lr), job.total_steps())
        )
        task, rule, state = at.start(job.recipe.training.seed)
        looks = []
        for step in at.steps(job.recipe.training.seed, torch.from_numpy(places)):
            state, _ = forward_step(task, rule, state, step)
            found = mean_metrics(task.model, task.objective, judging["validation"], state.theta)
            looks.append(found["loss"])
        best.append(min(looks))  # ten steps: a look after each
    assert worth["chosen"]["loss"] == pytest.approx(best[0], rel=1e-5)
    assert worth["chosen"]["gain"] == pytest.approx(best[1] - best[0], rel=1e-4, abs=1e-6)
    against = {"everything", "random", "target alone", "everything and target"}
    assert {way["name"] for way in worth["against"]} == against
    assert json.loads((there / "out/tune.json").read_text())["worth"] == worth
    said = describe_tuning(tuned.summary(), tuned.table, there / "out")
    assert worth_line(worth) in said
    assert ("so train on everything" in said) == (worth["answer"] != "pays")


@pytest.mark.usefixtures("real_figures")
def test_a_grid_of_which_one_pair_is_run_ends_like_any_other(here: Path) -> None:
    tuned = curate.tune(recipe("tune={}"), here / "out")
    assert len(finished(tuned.table)) == 1
    assert (here / "out/tune.png").read_bytes().startswith(b"\x89PNG")
    assert load_recipe(here / "out/recipe.yaml") == tuned.recipe


def test_nothing_is_tested_where_the_recipe_names_no_test_set(here: Path) -> None:
    tuned = curate.tune(recipe(SMALL, "data.test=null"), here / "out")
    assert tuned.test is None
    assert "test loss" not in describe_tuning(tuned.summary(), tuned.table, here / "out")


def test_the_study_opens_in_optuna_and_has_a_trial_per_pair_that_was_run_or_dropped(
    there: Path, tuned: Tuned
) -> None:
    url = f"sqlite:///{there}/out/study.db"
    study = optuna.load_study(study_name=tuned.study.study_name, storage=url)
    assert study.best_value == pytest.approx(tuned.value)
    assert study.best_params["horizon"] == tuned.pair.horizon
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(complete) == len(finished(tuned.table))
    dropped = study.get_trials(states=(TrialState.PRUNED,))
    assert len(dropped) == (tuned.table["outcome"] == "dropped").sum()


def test_running_it_again_measures_nothing_and_says_the_same(
    there: Path, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.tuning.trials.Trials.run", None)
    monkeypatch.setattr("curate.tuning.trials.Trials.run_pilot", None)
    monkeypatch.setattr("curate.tuning.trials.Trials.test", None)
    again = curate.tune(recipe(), there / "out")
    assert again.table.equals(tuned.table)
    assert (again.pair, again.test) == (tuned.pair, tuned.test)


def test_pairs_that_cannot_be_trusted_are_dropped_with_the_reason_before_any_run(
    there: Path, tuned: Tuned, tmp_path: Path
) -> None:
    ratios = tuned.table.filter(pl.col("horizon").is_not_null())
    ratios = ratios.with_columns(ratio=pl.col("error") / pl.col("signal"))
    least = float(ratios["ratio"].median())  # type: ignore[arg-type]
    tuned = curate.tune(recipe(f"tune.trust={least}"), tmp_path)
    for line in tuned.table.filter(pl.col("horizon").is_not_null()).to_dicts():
        trusted = line["error"] <= least * line["signal"]
        assert trusted == (line["outcome"] != "dropped")
        assert trusted == (line["reason"] is None)
        if not trusted:
            assert f"more than {least:g} of their size" in line["reason"]
            assert line["passes"] is None
            name = f"runs/K{line['horizon']}-lr{line['learning_rate']:g}.parquet"
            assert not (tmp_path / name).exists()


def test_where_no_pair_can_be_trusted_it_says_so(here: Path) -> None:
    with pytest.raises(RunError, match=r"no pair can be trusted: influences of .* Try lower"):
        curate.tune(recipe("tune.trust=1e-9"), here / "out")


def test_a_learning_rate_that_diverges_loses_and_the_others_go_on(here: Path) -> None:
    tuned = curate.tune(recipe("tune.learning_rates=[1e-2, 1e6]"), here / "out")
    assert tuned.pair.learning_rate == 1e-2
    lost = tuned.table.filter(pl.col("learning_rate") > 1)
    assert set(lost["outcome"]) <= {"pilot", "dropped", "failed"}
    assert describe_tuning(tuned.summary(), tuned.table, here / "out")


def test_a_pair_whose_scores_reach_no_threshold_loses_and_the_others_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trials.run

    def run_or_keep_nothing(self: Trials, pair: Pair, phases: Any) -> Any:
        if pair.horizon == 4:
            nothing = self.job.recipe.selection.model_copy(update={"keep": Keep(threshold=1e9)})
            recipe = self.job.recipe.model_copy(update={"selection": nothing})
            self = replace(self, job=replace(self.job, recipe=recipe))
        return real(self, pair, phases)

    monkeypatch.setattr(Trials, "run", run_or_keep_nothing)
    tuned = curate.tune(recipe(SMALL), here / "out")
    lost = tuned.table.filter(pl.col("outcome") == "failed")
    assert len(lost) >= 1
    assert set(lost["horizon"]) == {4}
    assert "selection.keep.threshold: 1000000000.0 keeps no row" in lost["reason"][0]
    assert tuned.pair.horizon != 4


def test_a_metric_that_is_better_when_higher(here: Path) -> None:
    tuned = curate.tune(recipe(SMALL, "tune.metric=accuracy"), here / "out")
    assert tuned.value == max(line["value"] for line in finished(tuned.table))
    assert tuned.study.best_value == tuned.value
    assert "accuracy" in describe_tuning(tuned.summary(), tuned.table, here / "out")


def start(out: str, said: Path) -> Any:
    """A process that tunes; what it says is in a file. One that died is taken for dead soon."""
    process = SERVER.Process(target=_tune, args=(out, said))
    process.start()
    return process


def _tune(out: str, said: Path) -> None:
    torch.set_num_threads(1)
    study.HEARTBEAT, study.GRACE = 1, 2
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(said.parent)
    raise SystemExit(tune("--out", out))


def units(said: Path) -> list[str]:
    """What a process says it has finished."""
    return [line for line in said.read_text().splitlines() if line.startswith(("pilot", "run "))]


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_ends_the_same(here: Path, tuned: Tuned) -> None:
    """Killed as soon as it has said that two units are finished, again and again."""
    seen: list[str] = []
    for _ in range(9):
        said = here / "said"
        said.touch()
        process = start("killed", said)
        while process.is_alive():
            if len(units(said)) >= 2:
                process.kill()
            time.sleep(0.002)
        seen += units(said)
        if process.exitcode == 0:
            break
        said.unlink()
    assert process.exitcode == 0, said.read_text()
    assert len(seen) == len(set(seen)) >= 5
    table = pl.read_parquet(here / "killed/tune.parquet").drop("seconds", "trial")
    assert table.equals(tuned.table.drop("seconds", "trial"))


def test_two_processes_share_the_work_and_end_the_same(here: Path, tuned: Tuned) -> None:
    both = [start("shared", here / f"said{k}") for k in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (here / "said0").read_text()
    said = units(here / "said0") + units(here / "said1")
    assert len(said) == len(set(said)) == 3 + len(finished(tuned.table))
    shared = pl.read_parquet(here / "shared/tune.parquet").drop("seconds", "trial")
    assert shared.equals(tuned.table.drop("seconds", "trial"))


def test_a_database_carries_the_study_and_scores_that_are_elsewhere_are_found_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{here}/study.db"
    first = curate.tune(recipe(SMALL), here / "one", storage=url)
    monkeypatch.setattr("curate.tuning.study.Study.recall", lambda *_: None)
    again = curate.tune(recipe(SMALL), here / "two", storage=url)
    assert again.table.equals(first.table)
    assert (again.pair, again.test) == (first.pair, first.test)
    assert not (here / "two/runs").exists()


def test_a_database_that_fails_on_the_way_is_told_in_a_line(here: Path) -> None:
    def lose(line: str) -> None:
        if line.startswith("pilot"):
            with sqlite3.connect(here / "study.db") as database:
                database.execute("drop table trials")

    with pytest.raises(RunError, match="the study's database failed"):
        curate.tune(recipe(), here / "out", storage=f"sqlite:///{here}/study.db", say=lose)


def test_the_command_says_what_it_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--out", "out", *sets(SMALL)) == 0
    said = capsys.readouterr()
    assert said.err.startswith("tuning 4 pairs: K 1, 4 x lr 0.001, 0.01; 10 steps a run")
    assert said.err.count("pilot lr") == 2
    assert "best: horizon " in said.out
    assert "test loss, retrained: " in said.out
    assert "wrote out/recipe.yaml" in said.out
    assert tune("--out", "out", "--json", *sets(SMALL)) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "loss"
    assert run(cli, ["select", "out/recipe.yaml", "--out", "kept", "--quiet"]) == 0
    assert (here / "kept/train").is_dir()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.policy=loss", "selection.policy: loss has no horizon to tune"),
        ("tune.metric=f1", "tune.metric: f1 is none of this objective's; it has loss, accuracy."),
        ("tune.horizons=[99]", "tune.horizons: 99 is longer than the run"),
        ("selection.keep={count: 99}", "selection.keep.count: is 99, but there are only 72"),
        ("tune.budget=0.01", "tune.budget: 0.01 of the grid of 9 pairs does not pay"),
        ("tune.validation=0.001", "validation has 24 rows, too few to divide"),
        ("data.validation=null", "data.validation: is required"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert tune("--out", "some/out", *sets(override)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (here / "some").exists()


def test_a_recipe_that_is_not_its_own_is_not_replaced(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of a selection, or the very one that is tuned."""
    before = (here / "recipe.yaml").read_bytes()
    assert tune("--out", ".") == 2
    assert ".: has a recipe.yaml that tune did not write" in capsys.readouterr().err
    assert (here / "recipe.yaml").read_bytes() == before
    assert not (here / "study.db").exists()


def test_another_recipe_is_not_mixed_in(
    there: Path, tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (there / "out/tune.json").read_bytes()
    assert tune("--out", "out", *sets("training.epochs=3")) == 2
    said = capsys.readouterr().err
    assert "out: holds a tuning of something else: recipe.training.epochs was 2 and is 3" in said
    assert (there / "out/tune.json").read_bytes() == before


def test_interrupted_it_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("curate.tuning.trials.Trials.run", interrupt)
        assert tune("--out", "out", *sets(SMALL)) == 130
    assert "what was tried is kept; run it again to go on" in capsys.readouterr().err
    assert tune("--out", "out", *sets(SMALL)) == 0
    assert "pilot" not in capsys.readouterr().err


class Bars(Phases):
    """Notes every phase with its total, and how far it came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[Any]] = []

    @contextmanager
    def phase(self, name: str, total: int = 0, unit: str = "") -> Iterator[Callable[..., None]]:
        seen: list[Any] = [name, total, 0, unit]
        self.seen.append(seen)

        def tick(count: int = 1) -> None:
            seen[2] += count

        yield tick


def test_all_pilots_share_one_bar_wherever_they_were_done(here: Path) -> None:
    bars = Bars()
    curate.tune(recipe(), here / "out", phases=bars)
    steps = prepare(recipe(), torch.device("cpu")).total_steps()
    (pilots,) = (seen for seen in bars.seen if seen[0] == "pilots")
    assert pilots[:3] == ["pilots", 3 * steps, 3 * steps]
    again = Bars()
    curate.tune(recipe(), here / "out", phases=again)
    assert [seen[:3] for seen in again.seen[1:]] == [["pilots", 3 * steps, 0]]  # none is to do


@pytest.mark.parametrize(("long", "said"), [(0.0, True), (1e9, False)])
def test_the_time_is_told_beforehand_where_it_is_long(
    here: Path, long: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tuning, trials_module):
        monkeypatch.setattr(module, "LONG", long)
    lines: list[str] = []
    curate.tune(recipe(SMALL), here / "out", say=lines.append)
    assert lines[0].startswith("tuning 4 pairs")
    assert lines[1].startswith("this will take about ") == said


def test_a_short_recipe_can_be_tuned_as_it_is(here: Path) -> None:
    lines: list[str] = []
    short = recipe("tune={learning_rates: [1e-2], seeds: [0]}", "training.epochs=1")
    tuned = curate.tune(short, here / "out", say=lines.append)
    budget = tuned.grid.tune.budget
    assert budget > 0.25
    assert tuned.passes <= budget * tuned.grid.grid_passes()
    assert f"at most {budget:.0%} of what" in lines[0]
