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


@pytest.mark.parametrize("epochs", [1, 4])
def test_influence_predicts_leave_one_out(epochs: int) -> None:
    script = runpy.run_path(str(EXAMPLES / "benchmarks" / "leave_one_out.py"))
    chosen = torch.randperm(1200, generator=torch.Generator().manual_seed(2))[:30]
    steps = script["plan"](epochs, 3e-3, 0.25)
    renormalised, _ = script["compare"](steps, 0, chosen, "renormalised")
    assert renormalised > 0.95


def test_plain_pytorch_loop_ends_lower_with_the_wrapped_loader() -> None:
    script = runpy.run_path(str(EXAMPLES / "plain_pytorch.py"))
    plain, selected = (script["run"](0, 4, select) for select in (False, True))
    assert selected < 0.7 * plain
