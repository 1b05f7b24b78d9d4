"""The examples run, and the leave-one-out benchmark still says what the README says."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

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
    name: str, horizon: int, share: float, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
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
