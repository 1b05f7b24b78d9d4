"""The examples run, and the leave-one-out benchmark still says what the README says."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from curate.cli.main import cli, run
from tests.job import curate, sets

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name: str, *arguments: str, main: bool = False) -> dict[str, Any]:
    """The names in an example; main: it is run, with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__" if main else "example")


@pytest.fixture
def selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], dict[str, float]]]:
    """Run a folder of examples in a copy: the summary, and what was lost by what was trained on."""

    def select(name: str, make: str, *less: str) -> tuple[dict[str, Any], dict[str, float]]:
        script(f"{name}/{make}", "--to", str(tmp_path), main=True)
        for path in (EXAMPLES / name).iterdir():
            if path.suffix in (".yaml", ".py"):
                (tmp_path / path.name).write_text(path.read_text())
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert curate("recipe.yaml", "--json", *sets(*less)) == 0
        summary = json.loads(capsys.readouterr().out)
        losses = {row["trained_on"]: row["loss"]["mean"] for row in summary["evaluation"]}
        return summary, losses

    return select


def test_own_model(selected: Callable[..., Any]) -> None:
    summary, loss = selected("own_model", "make_data.py")
    assert loss["look_ahead"] < min(loss["everything"], loss["random"])
    assert len(pl.read_parquet("out/recipe/scores.parquet")) == summary["candidates"]
    sys.modules.pop("bag_model")


def test_several_targets(selected: Callable[..., Any]) -> None:
    less = ["evaluation.seeds=[0]", "selection.judge=false"]
    _, loss = selected("several_targets", "make_digits.py", *less)
    assert loss["look_ahead"] < 0.85 * min(loss["everything"], loss["random"])
    scores = pl.read_parquet("out/recipe/scores.parquet")
    weighted = (4 * scores["influence/upright"] + scores["influence/lying"]) / 5
    assert (scores["influence"] - weighted).abs().max() < 1e-9


def test_texts_of_the_wanted_domain_are_kept(selected: Callable[..., Any]) -> None:
    """No score sees the column that says where a text is from."""
    less = ["selection.rounds=1", "selection.probing=0", "selection.judge=false"]
    _, loss = selected(
        "text_domains", "make_texts.py", *less, "training.epochs=2", "evaluation={seeds: [0]}"
    )
    assert loss["look_ahead"] < min(loss["everything"], loss["random"])
    made = json.loads(Path("out/recipe/provenance.json").read_text())
    domains = made["composition"]["domain"]
    share = {part["value"]: part["kept"] / part["candidates"] for part in domains}
    assert share.pop("debugger") > 1.5 * max(share.values())


def test_a_tuned_recipe_is_one_to_select_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = EXAMPLES / "tune_digits.yaml"
    monkeypatch.chdir(tmp_path)
    less = ["tune.learning_rates=[3e-3, 1e-2]", "tune.seeds=[0]"]
    assert run(cli, ["tune", str(recipe), "--out", "tuned", "--json", *sets(*less)]) == 0
    found = json.loads(capsys.readouterr().out)
    mean = {name: values[0]["loss"] for name, values in found["test"].items()}
    assert mean["kept"] < mean["everything"]
    best = ["tuned/recipe.yaml", "--out", "best", *sets("selection.judge=false")]
    assert curate(*best, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == round(0.6 * 899)


@pytest.mark.parametrize("epochs", [1, 4])
def test_influence_predicts_leave_one_out(epochs: int) -> None:
    names = script("benchmarks/leave_one_out.py")
    chosen = torch.randperm(1200, generator=torch.Generator().manual_seed(2))[:20]
    steps = names["plan"](epochs, 3e-3, 0.25)
    renormalised, _ = names["compare"](steps, 0, chosen, "renormalised")
    assert renormalised > 0.95


@pytest.mark.parametrize(
    ("name", "horizon", "share"),
    [("plain_pytorch", 4, 0.7), ("lightning_digits", 8, 0.7), ("hf_trainer", 4, 0.95)],
)
def test_training_loops_end_lower_with_look_ahead(
    name: str, horizon: int, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed by the example itself, plain against selected."""
    script(f"{name}.py", "--seeds", "0", "--horizon", str(horizon), main=True)
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: float(line.split()[3]) for line in lines}
    assert found.keys() == {"plain", "selected"}
    assert found["selected"] < share * found["plain"]


def test_peak_memory_does_not_grow_with_the_run_where_states_go_to_disk() -> None:
    names = script("benchmarks/snapshot_memory.py")
    found = names["measure"](64, names["FEW"], 64, 512)
    assert found["grown"] < 5 * found["state"]
    assert found["stored"] > (64 - names["FEW"]) * found["state"]


@pytest.fixture
def gpt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The names in a script of the GPT benchmark, by the script's."""
    folder, before = EXAMPLES / "benchmarks" / "gpt", {*sys.modules}
    monkeypatch.syspath_prepend(str(folder))
    yield lambda name: runpy.run_path(str(folder / f"{name}.py"))
    for name in {"meter", "scored", "setting"} - before:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("tied", [False, True])
def test_scores_of_a_gpt_are_finite_differences_of_a_loop_of_torch(
    tied: bool, tmp_path: Path, gpt: Callable[[str], dict[str, Any]]
) -> None:
    names = gpt("setting")
    small = names["Setting"](
        layers=2, width=16, heads=2, vocabulary=32, length=8, batch=3, steps=2, held=2, tied=tied
    )
    names["prepare"](tmp_path, small)
    gpt("plain")["weigh"](tmp_path)
    found = gpt("scored")["run"]("linear", tmp_path, torch.float64)
    by_weight = load_file(tmp_path / "differences.safetensors")["by_weight"]
    influences = load_file(tmp_path / "linear-float64.safetensors")["fixed"]
    torch.testing.assert_close(-by_weight, influences, rtol=1e-4, atol=1e-6)
    plain = gpt("plain")["leave"](tmp_path, 0, torch.float64)
    assert found["target"] == pytest.approx(plain["target"], abs=1e-12, rel=0)


def test_the_benchmark_of_gpus_runs_small_and_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = script("benchmarks/gpu.py")
    out = tmp_path / "rows.jsonl"
    meter = names["Meter"](torch.device("cpu"), out, 1e12)
    names["compare"](meter, "gpt2", names["gpt2"], "float32", 2, 2, True, True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = {row["way"]: row for row in rows}
    assert found["recorded and scored"]["seconds"] > 0
    assert found["central differences"]["spearman"] > 0.99
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert names["main"]() == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_faults_are_planted_and_judged(tmp_path: Path) -> None:
    """A few of each kind; in a process of its own, which forks."""
    only = ("two verifications", "no such column", "one seed")
    command = [sys.executable, str(EXAMPLES / "benchmarks/faults.py"), "--kills", "0"]
    done = subprocess.run(
        [*command, "--only", *only, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert [(line["lost"], line["wrong"]) for line in found] == [("", "")] * len(only)
