"""The examples run, and the leave-one-out benchmark still says what the README says."""

import json
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
from tests.job import curate

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = EXAMPLES / "own_model"
    make = [sys.executable, str(folder / "make_data.py"), "--to", str(tmp_path)]
    subprocess.run(make, check=True, capture_output=True)
    for name in ("bag_model.py", "recipe.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    monkeypatch.chdir(tmp_path)
    assert curate("recipe.yaml", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    loss = {row["trained_on"]: row["loss"]["mean"] for row in summary["evaluation"]}
    assert loss["look_ahead"] < min(loss["everything"], loss["random"])
    assert len(pl.read_parquet("out/recipe/scores.parquet")) == summary["candidates"]
    sys.modules.pop("bag_model")


def test_several_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = EXAMPLES / "several_targets"
    make = [sys.executable, str(folder / "make_digits.py"), "--to", str(tmp_path)]
    subprocess.run(make, check=True, capture_output=True)
    (tmp_path / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert curate("recipe.yaml", "--json", "--set", "evaluation.seeds=[0]") == 0
    summary = json.loads(capsys.readouterr().out)
    loss = {row["trained_on"]: row["loss"]["mean"] for row in summary["evaluation"]}
    assert loss["look_ahead"] < 0.85 * min(loss["everything"], loss["random"])
    scores = pl.read_parquet("out/recipe/scores.parquet")
    weighted = (4 * scores["influence/upright"] + scores["influence/lying"]) / 5
    assert (scores["influence"] - weighted).abs().max() < 1e-9


def test_texts_of_the_wanted_domain_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No score sees the column that says where a text is from."""
    folder = EXAMPLES / "text_domains"
    make = [sys.executable, str(folder / "make_texts.py"), "--to", str(tmp_path)]
    subprocess.run(make, check=True, capture_output=True)
    (tmp_path / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    less = (
        "--set",
        "evaluation={seeds: [0]}",
        "--set",
        "selection.rounds=1",
        "--set",
        "selection.probing=0",
        "--set",
        "training.epochs=2",
    )
    assert curate("recipe.yaml", "--json", *less) == 0
    summary = json.loads(capsys.readouterr().out)
    loss = {row["trained_on"]: row["loss"]["mean"] for row in summary["evaluation"]}
    assert loss["look_ahead"] < min(loss["everything"], loss["random"])
    made = json.loads(Path("out/recipe/provenance.json").read_text())
    share = {
        part["value"]: part["kept"] / part["candidates"] for part in made["composition"]["domain"]
    }
    assert share.pop("debugger") > 1.5 * max(share.values())


def test_a_tuned_recipe_is_one_to_select_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = EXAMPLES / "tune_digits.yaml"
    monkeypatch.chdir(tmp_path)
    less = ("--set", "tune.learning_rates=[3e-3, 1e-2]", "--set", "tune.seeds=[0]")
    assert run(cli, ["tune", str(recipe), "--out", "tuned", "--json", *less]) == 0
    found = json.loads(capsys.readouterr().out)
    mean = {name: values[0]["loss"] for name, values in found["test"].items()}
    assert mean["kept"] < mean["everything"]
    assert curate("tuned/recipe.yaml", "--out", "best", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == round(0.6 * 899)


@pytest.mark.parametrize("epochs", [1, 4])
def test_influence_predicts_leave_one_out(epochs: int) -> None:
    script = runpy.run_path(str(EXAMPLES / "benchmarks" / "leave_one_out.py"))
    chosen = torch.randperm(1200, generator=torch.Generator().manual_seed(2))[:30]
    steps = script["plan"](epochs, 3e-3, 0.25)
    renormalised, _ = script["compare"](steps, 0, chosen, "renormalised")
    assert renormalised > 0.95


@pytest.mark.parametrize(
    ("name", "horizon", "share"),
    [("plain_pytorch", 4, 0.7), ("lightning_digits", 8, 0.7), ("hf_trainer", 4, 0.95)],
)
def test_training_loops_end_lower_with_look_ahead(
    name: str,
    horizon: int,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As printed by the example itself, plain against selected."""
    script = str(EXAMPLES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--seeds", "0", "--horizon", str(horizon)])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: float(line.split()[3]) for line in lines}
    assert found.keys() == {"plain", "selected"}
    assert found["selected"] < share * found["plain"]


def test_peak_memory_does_not_grow_with_the_run_where_states_go_to_disk() -> None:
    script = runpy.run_path(str(EXAMPLES / "benchmarks" / "snapshot_memory.py"))
    for total in (16, 128):
        found = script["measure"](total, script["FEW"], total, 512)
        assert found["grown"] < 5 * found["state"]
        assert found["stored"] > (total - script["FEW"]) * found["state"]


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
    names = runpy.run_path("examples/benchmarks/gpu.py")
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
