"""What is forecast is what is done, step by step; and the plan that says it writes nothing."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from curate.influence import window as influence_window
from curate.influence.cost import LEAST, RunShape, measured, passes, work
from curate.influence.slopes import Slopes
from curate.pipeline import forecast as estimate
from curate.selection import driver as select
from curate.selection import judge as windows
from curate.selection.budget import Budget
from curate.selection.driver import Decided, Selector
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead, Policy, SmallLoss
from curate.trajectory import Disk, recording, redone
from tests import tiny
from tests.job import curate, sets
from tests.trajectory.test_recording import fewest_redone

T = 13


@pytest.mark.parametrize("snapshots", [1, 2, 3, 4, 7, 60])
def test_steps_redone_are_those_of_dynamic_programming(snapshots: int) -> None:
    for steps in range(1, 60):
        assert redone(steps, snapshots) == fewest_redone(steps + 1, snapshots) - steps


def test_a_long_run_is_measured_now_and_then() -> None:
    assert list(measured(13, 4)) == [0, 4, 8]  # the last is not committed
    assert list(measured(12, 4)) == [0, 4]
    assert list(measured(13, 13)) == []
    for total in (64, 65, 1000, 12_345):
        firsts = measured(total, 1)
        assert 32 <= len(firsts) <= 65
        assert total - firsts.step <= firsts[-1] + firsts.step


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is done from here on, by kind."""
    counts: Counter[str] = Counter()

    def spy(module: Any, name: str, note: Callable[..., str]) -> None:
        call = getattr(module, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            before = counts["forward"], counts["file"]
            found = call(*arguments, **options)
            counts[note(*arguments, **options)] += 1
            if name == "record":
                counts["recorded"] += counts["forward"] - before[0]
                counts["written"] += counts["file"] - before[1]
            elif name == "replay":
                counts["committed"] += counts["forward"] - before[0]
                counts["committed rows"] += sum(len(step.rows) for step in arguments[3])
            return found

        monkeypatch.setattr(module, name, counting)

    spy(recording, "forward_step", lambda *_: "forward")
    spy(safetensors.torch, "save_file", lambda *_: "file")
    spy(windows, "record", lambda *_, **__: "records")
    spy(select, "replay", lambda *_: "commits")
    spy(select, "target_losses", lambda *_: "looks")
    spy(influence_window, "backward_step", lambda *_, **__: "scored")
    spy(recording, "gradient", lambda *_, **__: "gradient")
    spy(Slopes, "see", lambda *_: "gradient")
    spy(influence_window, "target_gradients", lambda *_, **__: "targets")
    return counts


def selector(horizon: int, budget: Budget, policy: Policy, **options: Any) -> Selector:
    task, (rule, _) = tiny.task(), tiny.rule_for("adamw")
    return Selector(Judge(task, rule, policy, tiny.targets(), **options), budget, horizon)


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (T, 1, {}),
    (T, 3, {"snapshots": 2}),
    (T, 1, {"snapshots": 1}),
    (T, 2, {"snapshots": 2, "disk": 3}),
    (T, 1, {"snapshots": 1, "disk": 50}),
    (1, 4, {}),
    (4, 1, {"snapshots": 3}),
    (4, 2, {"snapshots": 1, "disk": 1}),
    (4, 2, {"snapshots": 2}),
    (5, 1, {}),
    (5, 3, {"snapshots": 5, "gradients": 2}),
    (T, 1, {"gradients": 4}),
    (T, 1, {"gradients": 0}),
    (T, 1, {"snapshots": 2, "gradients": 2}),
]


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize(("horizon", "rounds", "options"), CASES)
def test_work_is_what_is_done(
    tmp_path: Path,
    done: Counter[str],
    horizon: int,
    rounds: int,
    options: dict[str, Any],
    keep: float,
) -> None:
    options = {"snapshots": 64} | options
    steps = tiny.steps(T, size=6)
    chosen = selector(horizon, Budget(fraction=keep), LookAhead(rounds))
    judge = chosen.judge
    state = tiny.start(judge.task, judge.rule)
    disk = options["disk"] = Disk(options["disk"], tmp_path) if "disk" in options else None
    chosen = replace(chosen, judge=replace(judge, **options))

    run = chosen.shape(steps)
    assert run.gradients == chosen.judge.gradients
    expected, cost = work(run), passes(run)
    chosen.run(state, steps)

    assert done["recorded"] == expected.recorded == cost.record
    assert done["scored"] == expected.scored
    again = done["gradient"] - expected.recorded - expected.redone
    if run.memory + run.disk >= run.longest:
        assert again == expected.scored - expected.kept
    else:  # what is done again on the way to a state comes with some gradients more
        assert again <= expected.scored
    assert done["committed"] == expected.committed
    assert done["committed rows"] / 6 == pytest.approx(cost.commit)
    assert done["targets"] == expected.target_passes
    assert done["looks"] == expected.target_looks
    assert done["forward"] - done["recorded"] - done["committed"] == expected.redone == cost.redo
    assert done["written"] == expected.written
    assert expected.written == 0 or disk is not None
    looks = expected.target_passes + expected.target_looks / 3
    assert cost.targets == pytest.approx(looks * 20 / 6)
    assert cost.total == pytest.approx(
        sum((cost.record, cost.score, cost.redo, cost.commit, cost.targets, cost.probes))
    )


@pytest.mark.parametrize("horizon", [1, 4, T])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_work_of_a_policy_that_looks_at_losses(
    done: Counter[str], horizon: int, keep: float
) -> None:
    steps = tiny.steps(T, size=6)
    chosen = selector(horizon, Budget(fraction=keep), SmallLoss())
    expected = work(chosen.shape(steps))
    chosen.run(tiny.start(chosen.judge.task, chosen.judge.rule), steps)
    assert done["recorded"] == expected.recorded == T
    assert done["committed"] == expected.committed
    assert done["scored"] == expected.scored == done["targets"] == expected.target_passes == 0


def test_a_batch_that_is_kept_whole_is_not_trained_again(done: Counter[str]) -> None:
    """The last batch of an epoch, too small to lose a row."""
    steps = tiny.steps(9, size=8)
    steps = [step.keep(torch.arange(2)) if k % 3 == 2 else step for k, step in enumerate(steps)]
    chosen = selector(1, Budget(fraction=0.75), SmallLoss())
    expected = work(chosen.shape(steps))
    chosen.run(tiny.start(chosen.judge.task, chosen.judge.rule), steps)
    assert done["committed"] == expected.committed == 6


def run_of(steps: int, **changes: Any) -> RunShape:
    settings: dict[str, Any] = {
        "kept": [0.5] * steps,
        "horizon": steps,
        "rounds": 1,
        "goes_back": True,
        "memory": 100,
    }
    return RunShape(**settings | changes)


def test_passes_are_those_of_the_published_cost_model() -> None:
    """Per step 2.3 with gradients kept, 3.3 without; as much, too, for a window's first."""
    for horizon in (1, 5, 20):
        for gradients, each in ((20, 2.3), (0, 3.3)):
            run = run_of(20, horizon=horizon, gradients=gradients, kept=[1.0] * 20)
            checks = 1 if horizon == 1 else 6
            assert passes(run).total == pytest.approx(20 * each + checks)
    rounds = run_of(20, rounds=4, gradients=20, kept=[1.0] * 20)
    assert passes(rounds).total == pytest.approx(4 * 20 * 2.3 + 4 + 2 * 3)
    assert passes(run_of(20, gradients=20, central=True, kept=[1.0] * 20)).total == pytest.approx(
        20 + 19 * 2.6 + 1.3 + 6
    )
    kinked = run_of(20, gradients=20, kinked=True, kept=[1.0] * 20)
    assert passes(kinked).total == pytest.approx(20 * 2.3 + 19 * 0.35 + 6)


def test_each_setting_costs_what_it_should() -> None:
    plain = passes(run_of(20)).total
    assert passes(run_of(20, exact_jump=True)).total == plain + 5 * 20
    more = passes(run_of(20, targets=2)).score - passes(run_of(20)).score
    assert more == pytest.approx(19 * 1.3 + 0.3 + 2)
    assert passes(run_of(20, target_share=3.5)).total == plain + 3.5
    assert passes(run_of(20, memory=1)).redo == 19 * 20 / 2


@pytest.mark.parametrize("horizon", [1, 4, 8, 16])
def test_probes_cost_about_what_is_forecast(done: Counter[str], horizon: int) -> None:
    """How many there are depends on where they fall; START stands for what they cost besides."""
    steps = tiny.steps(48, size=6)
    chosen = replace(selector(horizon, Budget(fraction=1.0), LookAhead(1)), probing=1.0)
    expected = passes(chosen.shape(steps)).probes
    probes: list[int] = []

    def note(state: object, decided: Decided) -> None:
        assert decided.judged.scores is not None
        probes.extend(len(decided.weights) - probe.step for probe in decided.judged.scores.probes)

    chosen.run(tiny.start(chosen.judge.task, chosen.judge.rule), steps, on_window=note)
    spent = sum(3 + length + 20 / 6 / 3 for length in probes)
    assert 0.5 < spent / expected < 1.5


def test_one_probe_is_the_least() -> None:
    assert passes(run_of(20, probing=1e-9)).probes == 3 + 20 - 19 / 3
    assert passes(run_of(20, horizon=5, probing=1e-9)).probes == pytest.approx(4 * (3 + 5 - 4 / 3))
    assert passes(run_of(20, horizon=1, probing=1e-9)).probes == pytest.approx(LEAST * 4)
    assert passes(run_of(20)).probes == 0


EVALUATION = sets(
    "evaluation={seeds: [0, 1], against: [everything, random, loss, knn_shapley]}",
    "selection.probing=0",
)


def test_a_plan_counts_the_steps_of_the_whole_command(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert curate("recipe.yaml", "--plan", "--json", *EVALUATION) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(here.iterdir()) == before
    assert (plan["candidates"], plan["steps"], plan["windows"]) == (72, 10, 3)
    assert (plan["horizon"], plan["rounds"]) == (4, 4)
    parts = plan["passes"]
    assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"))
    assert parts["retrain"] == 5 * 2 * 10
    assert plan["memory"]["parameters"] == 4 * plan["parameters"] == 4 * 58
    assert plan["memory"]["total"] == sum(v for k, v in plan["memory"].items() if k != "total")
    assert plan["disk"]["snapshots"] == 0

    forward = 0
    call = recording.forward_step

    def counting(*arguments: Any) -> Any:
        nonlocal forward
        forward += 1
        return call(*arguments)

    monkeypatch.setattr(recording, "forward_step", counting)
    assert curate("recipe.yaml", "--out", "out", "--quiet", *EVALUATION) == 0
    committed = 2 * 8  # of two policies that train, all but the last window
    assert forward == parts["record"] + parts["redo"] + parts["retrain"] + 10 + committed


@pytest.mark.parametrize("policy", ["look_ahead", "loss", "random", "knn_shapley"])
def test_a_plan_of_every_policy(
    here: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trajectory = ["trajectory.disk=1MiB", "trajectory.snapshots=1"]
    assert curate("recipe.yaml", "--plan", *sets(f"selection.policy={policy}", *trajectory)) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{policy} on 72 candidates, 58 parameters, cpu\nsteps: 10;")
    assert ("disk: " in text) == (policy in ("look_ahead", "loss"))
    assert (" = snapshots " in text) == (policy == "look_ahead")
    assert "time: about " in text
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "selection.jump=exact",
        "training.dtype=float64",
        "training.micro_batch=5",
        "selection.keep={threshold: 0.0}",
        "selection.keep={count: 60}",
        "selection.horizon=1",
        "selection.group_by=group",
        "training.batch_size=1000",
    ],
)
def test_a_plan_of_every_setting(
    here: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("recipe.yaml", "--plan", "--json", *sets(setting)) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["seconds"]["total"] > 0
    assert plan["passes"]["total"] > 0


def test_a_plan_of_what_cannot_be_run_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("recipe.yaml", "--plan", *sets("data.train=gone.parquet")) == 2
    assert "no such file" in capsys.readouterr().err


def test_long_runs_are_announced(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("recipe.yaml", *sets("training.epochs=1"), "--out")
    assert curate(*run, "a") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(estimate, "LONG", 0.0)
    assert curate(*run, "b", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert curate(*run, "c") == 0
    captured = capsys.readouterr().err
    assert captured.startswith("this will take about ")
    assert "(5 steps, horizon 4, rounds 4)" in captured
    assert captured.count("\n") == 1
    scores = {Path(out, "scores.parquet").read_bytes() for out in "abc"}
    assert len(scores) == 1


def test_a_rough_guess_spares_short_runs_the_measuring(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(estimate, "measure", never)
    assert curate("recipe.yaml", "--out", "out", *sets("selection.policy=loss")) == 0
