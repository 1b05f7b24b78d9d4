"""`curate verify`: rows really left out, and what is left behind when it is cut short."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from datasets import load_from_disk
from torch.func import functional_call
from torch.nn import functional as F

import curate.pipeline.verify
from curate.cli.main import cli, run
from curate.influence import Scoring, score_window, size_of
from curate.pipeline.job import Job, prepare
from curate.pipeline.score import selector_for
from curate.pipeline.verify import JOURNAL, RemovalPlan, Verified
from curate.recipe import load_recipe
from curate.rules import State, as_sgd
from curate.runtime.lock import alone
from curate.runtime.progress import Phases
from curate.selection.driver import Decided
from curate.selection.judge import Judged
from curate.trajectory import Step, Task, record, replay
from tests.job import RECIPE, rows, sets, verify
from tests.job import curate as select

WIDE = ("training.dtype=float64", "selection.rounds=1", "selection.removal=renormalised")
QUICK = (*sets("selection.rounds=1"), "--quiet")
WRITTEN = ["verify.json", "verify.parquet", "verify.png"]


@dataclass
class Window:
    """What the run itself went through, for oracles to start from."""

    state: State
    judged: Judged


def verified(
    *settings: str,
    plan: RemovalPlan = RemovalPlan(12),  # noqa: B008
) -> tuple[Job, dict[int, Window], Verified]:
    """A verification by call, and every window of the run that it is about."""
    job = prepare(load_recipe(Path("recipe.yaml"), (*WIDE, *settings)), torch.device("cpu"))
    windows = {}

    def note(state: State, decided: Decided) -> None:
        windows[decided.first_step] = Window(state, decided.judged)

    selector, state, steps = selector_for(job, "look_ahead")
    selector.run(state, steps, on_window=note)
    found = curate.pipeline.verify.verify(job, plan, Path("v"), Phases(), lambda _: None)
    return job, windows, found


def target_loss(job: Job, task: Task, theta: torch.Tensor) -> float:
    (target,) = job.data.targets
    batch = target.examples.batch(torch.arange(len(target.examples)), task.model.device)
    z = functional_call(task.model.module, task.model.unpack(theta), batch["features"])
    return float(F.cross_entropy(z, batch["label"]))


def without(step: Step, row: int, removal: str) -> Step:
    """By a shorter batch; with the old denominator, by the SGD-like share of what is left."""
    others = (step.rows != row).nonzero()[:, 0]
    kept = step.keep(others)
    if removal == "renormalised":
        return kept
    return Step(kept.rows, kept.weights, kept.lrs, kept.seed, scale=len(others) / len(step.rows))


@pytest.mark.parametrize(
    ("horizon", "occurrences", "removal"),
    [
        ("7", "every", "renormalised"),
        ("7", "last", "renormalised"),
        ("7", "every", "fixed"),
        ("full", "last", "fixed"),
    ],
)
def test_actual_changes_are_those_of_windows_trained_without_the_row(
    here: Path, horizon: str, occurrences: Any, removal: str
) -> None:
    """Horizon 7 is longer than an epoch of 5 steps: rows occur twice in a window."""
    settings = [f"selection.horizon={horizon}", f"selection.removal={removal}"]
    job, windows, found = verified(*settings, plan=RemovalPlan(16, occurrences))
    task, rule, _ = job.start(job.recipe.training.seed)
    assert len(found.table) == 16
    candidates = {int(row): i for i, row in enumerate(job.data.examples.rows)}
    repeated = 0
    for line in found.table.iter_rows(named=True):
        window, row = windows[line["first_step"]], candidates[line["row"]]
        judged = window.judged
        places = [k for k, step in enumerate(judged.steps) if row in step.rows.tolist()]
        repeated += len(places) > 1
        places = places if occurrences == "every" else places[-1:]
        changed = [
            without(step, row, removal) if k in places else step
            for k, step in enumerate(judged.steps)
        ]
        before, after = (
            target_loss(job, task, replay(task, rule, window.state, steps).theta)
            for steps in (judged.steps, changed)
        )
        assert line["step"] == places[0]
        assert abs(after - before) > 1e-9
        assert line["actual"] == pytest.approx(after - before, rel=1e-7, abs=1e-13)
        assert judged.scores is not None
        predicted, size = 0.0, 0.0
        for k in places:
            own = judged.scores.influences[k].mean(dim=0)
            position = judged.steps[k].rows.tolist().index(row)
            predicted += float(own[position])
            size += float(size_of(own)[position])
        assert line["influence"] == pytest.approx(predicted, rel=1e-12)
        (expected,) = [w for w in found.scores.windows if w.first_step == line["first_step"]]
        assert line["error"] == pytest.approx(size * expected.error / expected.signal, rel=1e-12)
    assert repeated
    assert set(found.table["first_step"]) == set(windows)
    assert found.expected == pytest.approx(found.table["error"].mean())
    assert found.agreement.spearman.value > 0.5


def test_windows_are_verified_as_the_run_went_with_what_it_kept(here: Path) -> None:
    """Half is dropped on the way: later windows start elsewhere than they would with everything."""
    changes = {}
    for keep in ("0.5", "1.0"):
        settings = ("selection.horizon=4", f"selection.keep.fraction={keep}")
        job, windows, found = verified(*settings, plan=RemovalPlan(9))
        task, rule, _ = job.start(job.recipe.training.seed)
        candidates = {int(row): i for i, row in enumerate(job.data.examples.rows)}
        last = found.table.filter(pl.col("first_step") == 8)
        assert len(last) == 3
        for row, actual in last.select("row", "actual").iter_rows():
            steps = windows[8].judged.steps
            changed = [without(step, candidates[row], "renormalised") for step in steps]
            before, after = (
                target_loss(job, task, replay(task, rule, windows[8].state, steps).theta)
                for steps in (steps, changed)
            )
            assert actual == pytest.approx(after - before, rel=1e-7, abs=1e-13)
        changes[keep] = set(last["actual"])
    assert changes["0.5"] != changes["1.0"]


def test_rows_are_one_of_each_stratum_by_influence(here: Path) -> None:
    _, _, found = verified("selection.horizon=full")
    assert found.scores.influences is not None
    twice = np.sort(2 * found.scores.influences.mean(axis=0))  # every row is seen twice
    places = np.abs(twice[:, None] - found.table["influence"].to_numpy()).argmin(axis=0)
    assert sorted(places // 6) == list(range(12))
    _, _, other = verified("selection.horizon=full", plan=RemovalPlan(12, seed=1))
    assert set(other.table["row"]) != set(found.table["row"])


def test_fewer_examples_than_windows_are_spread_over_the_run(here: Path) -> None:
    _, windows, found = verified("selection.horizon=1", plan=RemovalPlan(4))
    assert len(windows) == 10
    firsts = found.table["first_step"].to_list()
    assert len(set(firsts)) == 4
    assert max(firsts) == 9
    assert min(firsts) <= 3


def test_a_run_without_probes_expects_no_error(here: Path) -> None:
    _, _, found = verified("selection.horizon=full", "selection.probing=0", plan=RemovalPlan(3))
    assert found.expected is None
    assert found.table["error"].is_nan().all()


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
def test_scores_as_sgd_are_those_of_the_same_run_by_a_mistaken_rule(
    here: Path, removal: str
) -> None:
    settings = ("selection.horizon=7", f"selection.removal={removal}")
    _, windows, found = verified(*settings, plan=RemovalPlan(10, "last", mistaken=True))
    assert found.mistaken is not None
    job = prepare(load_recipe(Path("recipe.yaml"), WIDE), torch.device("cpu"))
    task, rule, _ = job.start(job.recipe.training.seed)
    candidates = {int(row): i for i, row in enumerate(job.data.examples.rows)}
    for line in found.table.iter_rows(named=True):
        window, row = windows[line["first_step"]], candidates[line["row"]]
        steps = window.judged.steps
        scored = score_window(
            task,
            rule,
            record(task, rule, window.state, steps, snapshots=9),
            job.data.targets,
            scoring=Scoring(removal, mistaken_rule=as_sgd(rule)),
        )
        k = max(k for k, step in enumerate(steps) if row in step.rows.tolist())
        expected = float(scored.influences[k].mean(dim=0)[steps[k].rows.tolist().index(row)])
        assert line["influence_sgd"] == pytest.approx(expected, rel=1e-9)
        assert line["influence_sgd"] != pytest.approx(line["influence"], rel=1e-2)


def test_sgd_is_not_mistaken_for_sgd(here: Path) -> None:
    optimizer = "training.optimizer={kind: sgd, lr: 0.05}"
    _, _, found = verified(optimizer, plan=RemovalPlan(4, mistaken=True))
    np.testing.assert_allclose(found.table["influence_sgd"], found.table["influence"], rtol=1e-7)


# The command


@pytest.mark.usefixtures("real_figures")
def test_it_writes_a_table_a_picture_and_a_summary_and_nothing_else(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = sets("selection.rounds=1")
    assert verify("recipe.yaml", "--examples", "8", "--as", "sgd", *once) == 0
    captured = capsys.readouterr()
    note, announced, *_ = captured.err.splitlines()
    assert note == (
        "note: 8 examples are too few for a verdict; leave out 10 or more with --examples."
    )
    assert announced.startswith("leaving out 8 of 72 rows, one at a time, in 3 of 3 windows of 4")
    assert "verdict: no verdict: 8 examples are too few; leave out 10 or more." in captured.out
    wrote = "wrote out/recipe.verify/verify.parquet"
    assert all(part in captured.out for part in ("this run", "SGD (mistaken)", "verdict: ", wrote))
    out = Path("out/recipe.verify")
    assert sorted(p.name for p in out.iterdir()) == WRITTEN
    assert (out / "verify.png").read_bytes().startswith(b"\x89PNG")
    table = pl.read_parquet(out / "verify.parquet")
    names = "row first_step step influence actual influence_sgd error"
    assert table.columns == names.split()
    assert len(table) == 8
    summary = json.loads((out / "verify.json").read_text())
    assert summary["versions"]["torch"]
    assert summary["examples"] == 8
    assert summary["mistaken"]["spearman"]["value"] != summary["agreement"]["spearman"]["value"]
    assert summary["expected_error"] == pytest.approx(table["error"].mean())
    assert summary["reproduced"] is None


@pytest.mark.parametrize(("given", "windows"), [("3", [0, 3, 6, 9]), ("full", [0])])
def test_another_horizon_and_json(
    here: Path, given: str, windows: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--examples", "8", "--horizon", given, "--json", "--out", "v")
    assert verify("recipe.yaml", *options, *QUICK) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    summary = json.loads(captured.out)
    assert str(summary["horizon"]) == given
    table = pl.read_parquet("v/verify.parquet")
    assert sorted(set(table["first_step"])) == windows
    written = json.loads(Path("v/verify.json").read_text())
    assert {key: written[key] for key in summary} == summary
    assert set(summary["agreement"]["spearman"]) == {"value", "low", "high"}


def test_a_run_is_verified_in_its_own_place_and_its_scores_are_found_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select("recipe.yaml", "--out", "out", *QUICK) == 0
    before = {p.name for p in Path("out").iterdir()}
    capsys.readouterr()
    assert verify("out", "--examples", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reproduced"] is True
    assert {p.name for p in Path("out").iterdir()} - before == {*WRITTEN}
    assert len(load_from_disk("out")["train"]) == 36
    # scores that code of another day made
    table = pl.read_parquet("out/scores.parquet")
    table.with_columns(pl.col("influence") * 1.01).write_parquet("out/scores.parquet")
    assert verify("out", "--examples", "4") == 0
    assert "note: scoring again gave other influences" in capsys.readouterr().out
    assert verify("out", "--examples", "4", "--horizon", "2", "--json", "--out", "v") == 0
    assert json.loads(capsys.readouterr().out)["reproduced"] is None


class Interrupted:
    """Counts the rows left out, and is interrupted before the (after + 1)-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int | None) -> None:
        self.rows, self.after = 0, after
        monkeypatch.setattr(curate.pipeline.verify, "replay", self._replay)

    def _replay(self, task: Any, rule: Any, state: Any, steps: Any, *tick: Any) -> Any:
        if tick:  # of a row; the others only go up to the step that it is left out of
            if self.rows == self.after:
                raise KeyboardInterrupt
            self.rows += 1
        return replay(task, rule, state, steps, *tick)


OPTIONS = ("recipe.yaml", "--examples", "12", "--out", "v", *QUICK)


def cut_short(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    Interrupted(monkeypatch, 5)
    assert verify(*OPTIONS, *options) == 130
    assert [p.name for p in Path("v").iterdir()] == [JOURNAL]
    assert len(Path("v", JOURNAL).read_text().splitlines()) == 1 + 5


def rows_done(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    counted = Interrupted(monkeypatch, None)
    assert verify(*OPTIONS, *options) == 0
    assert sorted(p.name for p in Path("v").iterdir()) == WRITTEN
    return counted.rows


def test_what_was_measured_before_an_interrupt_is_not_measured_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short(monkeypatch)
    assert "Traceback" not in capsys.readouterr().err
    assert rows_done(monkeypatch) == 12 - 5
    resumed = pl.read_parquet("v/verify.parquet")
    shutil.rmtree("v")
    assert rows_done(monkeypatch) == 12
    assert resumed.equals(pl.read_parquet("v/verify.parquet"))


@pytest.mark.parametrize("torn", [1, 2, 12])
def test_a_torn_last_line_is_measured_again_and_no_other(
    here: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    """`torn` characters are missing; the first of them is only the line's end."""
    cut_short(monkeypatch)
    text = Path("v", JOURNAL).read_text()
    Path("v", JOURNAL).write_text(text[:-torn])
    assert rows_done(monkeypatch) == 12 - (5 if torn == 1 else 4)


def test_a_second_interrupt_loses_nothing_of_the_first(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(monkeypatch)
    Interrupted(monkeypatch, 4)
    assert verify(*OPTIONS) == 130
    assert rows_done(monkeypatch) == 12 - 5 - 4


@pytest.mark.parametrize(
    "options",
    [("--seed", "1"), ("--examples", "13"), ("--occurrences", "last"), ("--horizon", "5")],
    ids=lambda o: o[0],
)
def test_a_journal_of_another_plan_is_not_used(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str]
) -> None:
    cut_short(monkeypatch)
    assert rows_done(monkeypatch, *options) == (13 if "13" in options else 12)


def test_a_journal_of_other_data_is_not_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe is the same, but the file that it names has been written anew."""
    cut_short(monkeypatch)
    data = rows()
    data.map(lambda row: {"x": [2 * v for v in row["x"]]}).to_parquet("rows.parquet")
    assert rows_done(monkeypatch) == 12


def test_an_interrupt_while_writing_loses_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(curate.pipeline.verify, "plot_verification", interrupted)
        assert verify(*OPTIONS) == 130
    assert rows_done(monkeypatch) == 0
    assert len(pl.read_parquet("v/verify.parquet")) == 12


def refused(capsys: pytest.CaptureFixture[str], message: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("curate: ")
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--examples", "1"], "--examples must be at least 2 but got 1."),
        (["--examples", "-3"], "--examples must be at least 2 but got -3."),
        (["--examples", "73"], "--examples: is 73, but there are only 72 candidates."),
        (["--seed", "-1"], "--seed must be at least 0 but got -1."),
        (["--horizon", "0"], "selection.horizon: must be at least 1 but got 0"),
        (["--horizon", "soon"], "selection.horizon: must be at least 1 but got 'soon'"),
        (sets("selection.policy=loss"), "selection.policy: loss has no influences to verify"),
        (sets("selection.kep=1"), "selection.kep: unknown key"),
        (["--out", "recipe.yaml"], "recipe.yaml: cannot be written: "),
    ],
)
def test_what_cannot_be_verified_is_refused_in_one_line(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert verify("recipe.yaml", *QUICK, *arguments) == 2
    refused(capsys, message)
    assert sorted(here.iterdir()) == before


@pytest.fixture(scope="module")
def run_to_spoil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selected")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rows().to_parquet("rows.parquet")
        Path("recipe.yaml").write_text(RECIPE)
        assert select("recipe.yaml", "--out", "out", *QUICK) == 0
    return folder


@pytest.fixture
def selected(run_to_spoil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a run wrote, in out/."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(run_to_spoil, tmp_path, dirs_exist_ok=True)


def no_recipe(run: Path) -> None:
    (run / "recipe.yaml").unlink()


def no_provenance(run: Path) -> None:
    (run / "provenance.json").unlink()


def foreign_provenance(run: Path) -> None:
    (run / "provenance.json").write_text('{"sources": ["rows.parquet"]}')


def other_data(run: Path) -> None:
    rows(119).to_parquet("rows.parquet")


def no_scores(run: Path) -> None:
    (run / "scores.parquet").unlink()


def torn_scores(run: Path) -> None:
    whole = (run / "scores.parquet").read_bytes()
    (run / "scores.parquet").write_bytes(whole[: len(whole) // 2])


def empty(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def gone(run: Path) -> None:
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_data, "out: rows.parquet has changed since it was scored; select again"),
        (no_recipe, "out/recipe.yaml: cannot read the recipe"),
        (no_provenance, "out: its provenance.json cannot be read, so it is not a directory that"),
        (foreign_provenance, "out: its provenance.json cannot be read"),
        (no_scores, "out/scores.parquet: cannot be read"),
        (torn_scores, "out/scores.parquet: cannot be read"),
        (empty, "out/recipe.yaml: cannot read the recipe"),
        (gone, "out: cannot read the recipe"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_directory_that_is_no_run_any_more_is_refused_before_any_work(
    selected: Path, spoil: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def worked(*_: Any) -> None:
        raise AssertionError("it went to work")

    spoil(Path("out"))
    before = sorted(selected.rglob("*"))
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curate.pipeline.verify, "verify", worked)
        assert verify("out", "--examples", "4", "--quiet") == 2
    refused(capsys, message)
    assert sorted(selected.rglob("*")) == before


def test_a_run_of_another_policy_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert select("recipe.yaml", "--out", "out", *QUICK, *sets("selection.policy=loss")) == 0
    capsys.readouterr()
    assert verify("out") == 2
    refused(capsys, "selection.policy: loss has no influences to verify; verify needs look_ahead.")


def test_usage_mistakes_are_exit_code_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify() == 2
    for option in (["--as", "adam"], ["--occurrences", "first"], ["--examples", "many"]):
        assert verify("recipe.yaml", *option) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_blows_up_is_exit_code_1_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = "training.optimizer={kind: sgd, lr: 1e6, momentum: 0.9}"
    assert verify("recipe.yaml", "--out", "v", *QUICK, *sets(optimizer)) == 1
    refused(capsys, "lower the learning rate")


def test_the_second_process_on_a_directory_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(Path("v/verify.lock"), "taken"):
        assert verify("recipe.yaml", *QUICK, "--examples", "4", "--out", "v") == 2
    said = capsys.readouterr().err
    assert said == (
        "curate: v: another process is verifying there; wait for it, or choose another --out.\n"
    )
    assert verify("recipe.yaml", *QUICK, "--examples", "4", "--out", "v") == 0
    assert sorted(path.name for path in Path("v").iterdir()) == WRITTEN


def test_a_picture_that_fails_takes_nothing_with_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no font")

    arguments = ("recipe.yaml", *QUICK, "--examples", "4", "--out", "v")
    with monkeypatch.context() as patch:
        patch.setattr(curate.pipeline.verify, "plot_verification", fail)
        assert verify(*arguments) == 1
    assert "verify.png: MemoryError: no font" in capsys.readouterr().err
    assert len(pl.read_parquet("v/verify.parquet")) == 4
    assert json.loads(Path("v/verify.json").read_text())["examples"] == 4
    monkeypatch.setattr(curate.pipeline.verify, "leave_out", None)  # nothing is measured again
    assert verify(*arguments) == 0
    assert sorted(path.name for path in Path("v").iterdir()) == WRITTEN


MODEL = """
from pathlib import Path

from torch import nn


def build():
    Path("trace").touch()
    return nn.Linear(4, 2)
"""


def test_code_that_a_directory_names_is_run_only_if_told_to(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = Path("trace")
    Path("owned_model.py").write_text(MODEL)
    own = sets("model={factory: 'owned_model:build'}", "selection.rounds=1")
    assert select("recipe.yaml", "--out", "run", "--quiet", *own) == 0
    trace.unlink()
    assert verify("run", "--examples", "4", "--quiet") == 2
    said = capsys.readouterr().err
    assert "names code, which verifying runs: model.factory owned_model:build" in said
    for command in (["inspect", "run"], ["inspect", "run", "--row", "1"], ["report", "run"]):
        assert run(cli, command) == 0
    assert not trace.exists()
    assert verify("run", "--examples", "4", "--quiet", "--run-code") == 0
    assert trace.exists()


def test_a_plan_says_that_it_runs_code_before_it_does(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("told_model.py").write_text("import sys\nprint('running', file=sys.stderr)\n" + MODEL)
    assert (
        select("recipe.yaml", "--plan", "--quiet", *sets("model={factory: 'told_model:build'}"))
        == 0
    )
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert (
        "the recipe names code, which is run for the plan, too: model.factory told_model" in first
    )
    assert second == "running"
