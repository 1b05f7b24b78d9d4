"""Trackers: what they are told is what happened, and none of them can hurt a run."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curate import check_recipe, load_recipe
from curate import select as run_select
from curate.cli.main import cli, run
from curate.errors import MissingExtraError, OptionError
from curate.recipe import resolved
from curate.runtime.trackers import Careful, open_tracker, tracking
from curate.runtime.trackers.open import KINDS
from tests.integrations.loop import losses, net, target, train
from tests.job import RECIPE, curate
from tests.output.test_audit_log import numbered

Calls = list[tuple[str, Any]]


class Recorder:
    """A tracker of one's own: a method is all it takes."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.asked = 0
        self._fail_at = fail_at

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.asked += 1
        if self.asked == self._fail_at:
            raise ConnectionError("the server\nis away")
        self.told.append((step, dict(metrics)))

    def of(self, kind: str) -> list[tuple[int, dict[str, float]]]:
        """What was told of windows, say: names without `window/`."""
        start = f"{kind}/"
        return [
            (step, {name.removeprefix(start): value for name, value in metrics.items()})
            for step, metrics in self.told
            if all(name.startswith(start) for name in metrics)
        ]


class Talkative(Calls):
    """Prints when it is opened and closed."""

    def append(self, call: tuple[str, Any]) -> None:
        if call[0] in ("open", "close"):
            print(call)

    def extend(self, calls: Any) -> None:
        for call in calls:
            self.append(call)


def stub_tensorboard(calls: Calls) -> ModuleType:
    class SummaryWriter:
        def __init__(self, where: str) -> None:
            calls.append(("open", where))

        def add_text(self, name: str, text: str) -> None:
            calls.append(("config", f"{name}: {text}"))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(("log", ({name: value}, step)))

        def flush(self) -> None:
            calls.append(("flush", None))

        def close(self) -> None:
            calls.append(("close", None))

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    return module  # type: ignore[no-any-return]


def stub_wandb(calls: Calls) -> ModuleType:
    def init(*, project: str, entity: str | None, config: dict[str, Any]) -> Any:
        calls.extend([("open", f"{entity}/{project}"), ("config", str(config))])
        return SimpleNamespace(
            log=lambda metrics, step: calls.append(("log", (metrics, step))),
            finish=lambda exit_code: calls.append(("close", exit_code)),
        )

    module: Any = ModuleType("wandb")
    module.init = init
    return module  # type: ignore[no-any-return]


def stub_mlflow(calls: Calls) -> ModuleType:
    module: Any = ModuleType("mlflow")
    module.set_experiment = lambda where: calls.append(("open", where))
    module.start_run = lambda: calls.append(("start", None))
    module.log_dict = lambda config, name: calls.append(("config", str(config)))
    module.log_metrics = lambda metrics, step: calls.append(("log", (metrics, step)))
    module.end_run = lambda status: calls.append(("close", status))
    return module  # type: ignore[no-any-return]


STUBS = {
    "tensorboard": ("torch.utils.tensorboard", stub_tensorboard, "runs/x", "runs/x"),
    "wandb": ("wandb", stub_wandb, "lab/project", "lab/project"),
    "mlflow": ("mlflow", stub_mlflow, "experiment", "experiment"),
}


@pytest.fixture(autouse=True)
def _no_tracker_is_loaded() -> Iterator[None]:
    names = [f"curate.runtime.trackers.{kind}" for kind in KINDS]
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_pass_on_what_they_are_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, stub, where, opened = STUBS[kind]
    calls: Calls = []
    monkeypatch.setitem(sys.modules, name, stub(calls))
    tracker = open_tracker(f"{kind}:{where}", {"policy": "look_ahead"})
    tracker.log({"a/b": 0.5, "c": 2.0}, 7)
    tracker.close()
    told: dict[str, float] = {}
    for what, value in calls:
        if what == "log":
            metrics, step = value
            told |= metrics
            assert step == 7
    assert told == {"a/b": 0.5, "c": 2.0}
    assert ("open", opened) in calls
    assert any(what == "config" and "look_ahead" in value for what, value in calls)
    assert calls[-1][0] == "close"


@pytest.mark.parametrize("failed", [False, True])
def test_how_a_run_ended_is_passed_on(failed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {}
    for kind in ("wandb", "mlflow"):
        name, stub, where, _ = STUBS[kind]
        calls: Calls = []
        monkeypatch.setitem(sys.modules, name, stub(calls))
        try:
            with tracking([f"{kind}:{where}"], {}, pytest.fail):
                if failed:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        ended[kind] = calls[-1]
    status = "FAILED" if failed else "FINISHED"
    assert ended == {"wandb": ("close", int(failed)), "mlflow": ("close", status)}


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


@pytest.mark.parametrize("text", ["neptune:x", "tensorboard", "tensorboard:", ":x", ""])
def test_what_is_no_tracker_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="must be one of tensorboard:DIRECTORY"):
        open_tracker(text)


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
        for name in ("target_loss", "predicted", "realised"):
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
    from curate.influence.error_proxy import ErrorProxy, _Window
    from curate.influence.probes import Probe

    rng, proxy = np.random.default_rng(0), ErrorProxy(0.2, exact=False)
    for k in range(6):
        probes = [
            Probe(0, position, float(size), linear=0.1, exact=0.1, actual=float(actual))
            for position, (size, actual) in enumerate(rng.random((k % 3, 2)))
        ]  # fmt: skip
        sizes = rng.random(5)
        proxy._windows.append(_Window(k, np.arange(5), sizes, 1, sizes.mean(), 0.0, 1.0, probes))
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


def test_one_that_fails_to_close_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stub_mlflow([])

    def fail(status: str) -> None:
        raise OSError("disk full")

    module.end_run = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    lines: list[str] = []
    with tracking(["mlflow:x"], {}, lines.append):
        pass
    assert lines == ["MLflow failed to close: disk full."]


def test_from_python_a_failure_is_a_warning_and_an_interrupt_an_interrupt() -> None:
    recorder = Recorder(fail_at=2)
    watched = Careful(recorder)
    watched.log({"a": 1.0}, 0)
    with pytest.warns(RuntimeWarning, match="Recorder failed with ConnectionError"):
        watched.log({"a": 2.0}, 1)
    watched.log({"a": 3.0}, 2)
    assert recorder.told == [(0, {"a": 1.0})]
    assert recorder.asked == 2

    class Stopped:
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            raise KeyboardInterrupt(metrics, step)

    with pytest.raises(KeyboardInterrupt):
        Careful(Stopped()).log({}, 0)


@pytest.mark.parametrize("keep", [0.5, "weights"])
def test_a_loop_tells_of_every_window_it_trained_on(keep: float | str) -> None:
    from torch.utils.data import DataLoader

    from curate import LookAheadLoader

    recorder, model = Recorder(), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    wrapped = LookAheadLoader(
        DataLoader(numbered(), batch_size=16), model, optimizer, losses, target(),
        horizon=4, rounds=2, keep=keep, tracker=recorder,
    )  # fmt: skip
    if keep == "weights":
        for batch, _ in wrapped:
            optimizer.zero_grad()
            losses(model, batch).mean().backward()
            optimizer.step()
    else:
        train(wrapped, model, optimizer)
    told, reports = recorder.of("window"), wrapped.reports
    assert [step for step, _ in told] == [0, 4]
    for (_, metrics), report in zip(told, reports, strict=True):
        assert metrics == {
            "target_loss": report.target_loss, "predicted": report.predicted,
            "realised": report.realised, "kept": report.kept / report.offered,
            "horizon": 4.0, "seconds": report.seconds,
        }  # fmt: skip


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
