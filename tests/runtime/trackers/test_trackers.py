"""Trackers: what they are told is what happened, and none of them can hurt a run."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curate import check_recipe, load_recipe, run_select
from curate.cli.main import cli, run
from curate.errors import MissingExtraError, OptionError
from curate.recipe import resolved
from curate.runtime.trackers import open_tracker
from curate.runtime.trackers.open import KINDS
from tests.integrations.loop import losses, net, target, train
from tests.job import RECIPE, curate
from tests.output.test_audit_log import numbered
from tests.runtime.trackers.stubs import (
    STUBS,
    Calls,
    Recorder,
    Talkative,
    stub_mlflow,
    stub_wandb,
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_trackers_print_does_not_spoil_json(
    here: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, stub, where, _ = STUBS[kind]
    monkeypatch.setitem(sys.modules, name, stub(Talkative()))
    options = ("--out", "out", "--json", "--track", f"{kind}:{where}")
    assert curate("recipe.yaml", *options, "--set", "selection.policy=loss") == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["kept"] == 36
    assert "open" in found.err
    assert "close" in found.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named(
    here: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, STUBS[kind][0], None)
    with pytest.raises(MissingExtraError, match=f"install it with `pip install {kind}`"):
        open_tracker(f"{kind}:x")
    assert curate("recipe.yaml", "--out", "out", "--track", f"{kind}:x") == 2
    assert capsys.readouterr().err == (
        f"curate: --track {kind}:x needs the package {kind}; "
        f"install it with `pip install {kind}`.\n"
    )
    assert not Path("out").exists()


def test_a_tracker_that_cannot_be_opened_is_refused_before_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = ModuleType("wandb")

    def init(**_: Any) -> None:
        raise RuntimeError("api key not configured.\nCall wandb.login")

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert curate("recipe.yaml", "--out", "out", "--track", "wandb:x") == 2
    assert capsys.readouterr().err == (
        "curate: --track wandb:x: cannot be opened: api key not configured. Call wandb.login.\n"
    )
    assert not Path("out").exists()


def test_a_selection_tells_of_every_window_and_what_it_came_to(here: Path) -> None:
    """The numbers of windows.parquet and of the summary, under their steps."""
    recorder = Recorder()
    recipe = load_recipe(
        "recipe.yaml",
        ["selection.probing=0.5", "evaluation={seeds: [0, 1], against: [everything, loss]}"],
    )
    summary = run_select(recipe, Path("out"), device="cpu", trackers=[recorder])
    windows = pl.read_parquet("out/windows.parquet")
    told = recorder.of("window")
    assert [step for step, _ in told] == windows["first_step"].to_list() == [0, 4, 8]
    for (_, metrics), row in zip(told, windows.to_dicts(), strict=True):
        assert metrics["seconds"] > 0
        assert metrics["kept"] == row["kept"] / row["candidates"]
        assert metrics["influence"] == row["signal"]
        for name in ("target_loss", "predicted", "realized"):
            assert metrics.get(name) == row[name]
    assert told[-1][1]["error"] == pytest.approx(windows["error"][-1], rel=1e-12)
    ((step, found),) = recorder.of("run")
    assert step == summary["steps"]
    assert (found["kept"], found["candidates"]) == (36, 72)
    assert found["noise_auroc"] == summary["noise"]["auroc"]
    assert found["error"] == summary["error"]["error"]
    for row in summary["evaluation"]:
        ((_, means),) = recorder.of(f"test/{row['trained_on']}")
        assert means == {name: row[name]["mean"] for name in ("loss", "accuracy")}
    steps = [step for step, _ in recorder.told]
    assert steps == sorted(steps)


def test_being_watched_changes_nothing(here: Path) -> None:
    recipe = load_recipe("recipe.yaml", ["selection.probing=0.5"])
    run_select(recipe, Path("a"), device="cpu")
    run_select(recipe, Path("b"), device="cpu", trackers=[Recorder()])
    for name in ("scores", "windows"):
        assert pl.read_parquet(f"a/{name}.parquet").equals(pl.read_parquet(f"b/{name}.parquet"))


def test_policies_without_influences_tell_what_they_came_to(here: Path) -> None:
    recorder = Recorder()
    recipe = load_recipe("recipe.yaml", ["selection.policy=loss"])
    run_select(recipe, Path("out"), device="cpu", trackers=[recorder])
    assert recorder.of("window") == []
    ((_, found),) = recorder.of("run")
    assert found["kept"] == 36
    assert "error" not in found


def test_error_so_far_is_that_of_the_windows_so_far() -> None:
    """Against a proxy that was told of no more."""
    from curate.influence import ErrorProxy, WindowScores
    from curate.influence.probes import Probe
    from curate.trajectory import Step
    from tests import tiny

    rng, proxy = np.random.default_rng(0), ErrorProxy(0.2, exact=False)
    step, target = Step(torch.arange(5), torch.ones(5), (0.1,), 0), tiny.targets()[:1]
    loss, sizes = torch.ones(1, dtype=torch.float64), [torch.ones(5)]
    for k in range(6):
        probes = [
            Probe(0, position, float(size), linear=0.1, exact=0.1, actual=float(actual))
            for position, (size, actual) in enumerate(rng.random((k % 3, 2)))
        ]
        influences = [torch.from_numpy(rng.normal(size=(1, 5)))]
        scores = WindowScores(influences, influences, sizes, loss, probes, target, [0.0])
        proxy.enter(k, [step], scores, 10)
        if k % 2:
            assert proxy.latest() == pytest.approx(proxy.windows()[-1].error, rel=1e-12)


def test_a_tracker_that_fails_is_left_out_with_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: Calls = []
    module = stub_mlflow(calls)

    def fail(metrics: dict[str, float], step: int) -> None:
        calls.append(("log", (metrics, step)))
        raise ConnectionError("the server\nis away")

    module.log_metrics = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "wandb", stub_wandb(others := []))
    options = ("--track", "mlflow:x", "--track", "wandb:y", "--quiet")
    assert curate("recipe.yaml", "--out", "out", *options) == 0
    assert capsys.readouterr().err == (
        "curate: MLflow failed with ConnectionError: the server is away; "
        "the run goes on without it.\n"
    )
    assert [what for what, _ in calls].count("log") == 1
    assert calls[-1] == ("close", "FINISHED")
    assert [what for what, _ in others].count("log") == 4
    assert pl.read_parquet("out/scores.parquet")["kept"].sum() == 36


@pytest.mark.parametrize("keep", [0.5, "weights"])
def test_a_loop_tells_of_every_window_it_trained_on(keep: float | str) -> None:
    from torch.utils.data import DataLoader

    from curate import LookAheadLoader

    recorder, model = Recorder(), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    wrapped = LookAheadLoader(
        DataLoader(numbered(), batch_size=16),
        model,
        optimizer,
        losses,
        target(),
        horizon=4,
        rounds=2,
        keep=keep,
        tracker=recorder,
    )
    if keep == "weights":
        for batch, weights in wrapped:
            optimizer.zero_grad()
            (weights * losses(model, batch)).mean().backward()
            optimizer.step()
    else:
        train(wrapped, model, optimizer)
    told, reports = recorder.of("window"), wrapped.reports
    assert [step for step, _ in told] == [0, 4]
    for (_, metrics), report in zip(told, reports, strict=True):
        assert metrics == {
            "target_loss": report.target_loss,
            "predicted": report.predicted,
            "realized": report.realized,
            "kept": report.kept / report.candidates,
            "influence": report.signal,
            "horizon": 4.0,
            "seconds": report.seconds,
        }


def test_nothing_to_track_is_refused() -> None:
    from curate.integrations.options import Options

    with pytest.raises(OptionError, match="nothing to track"):
        Options(keep=1.0, tracker=Recorder())


def test_tuning_tells_of_every_pilot_and_run(here: Path) -> None:
    from curate import tune

    recorder = Recorder()
    recipe = check_recipe(
        load_recipe("recipe.yaml").model_dump(mode="json", exclude_none=True)
        | {
            "tune": {
                "horizons": [1, 4],
                "learning_rates": [1e-3, 1e-2],
                "budget": 0.9,
                "seeds": [0],
            }
        }
    )
    tuned = tune(recipe, "tuned", device="cpu", trackers=[recorder])
    assert [step for step, _ in recorder.told] == list(range(len(recorder.told)))
    pilots = {m["learning_rate"]: m["loss"] for _, m in recorder.of("pilot")}
    assert pilots == tuned.everything
    trials = {(m["horizon"], m["learning_rate"]): m["loss"] for _, m in recorder.of("trial")}
    assert trials[tuned.pair] == tuned.value
    assert len(trials) == len(tuned.table.filter(pl.col("outcome").is_in(["best", "beaten"])))


def test_tune_from_the_command_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    monkeypatch.setitem(sys.modules, "wandb", stub_wandb(calls))
    Path("r.yaml").write_text(
        RECIPE + "tune: {horizons: [1, 4], learning_rates: [1e-2], budget: 1.0, seeds: [0]}\n"
    )
    assert run(cli, ["tune", "r.yaml", "--out", "t", "--quiet", "--track", "wandb:p"]) == 0
    assert ("config", str(resolved(load_recipe("r.yaml")))) in calls
    steps = [value[1] for what, value in calls if what == "log"]
    assert steps == list(range(len(steps)))
    assert calls[-1] == ("close", 0)
