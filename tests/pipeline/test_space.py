"""Memory and files at their most, by arithmetic and against what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curate.pipeline.space import Sizes, disk, memory
from curate.runtime import savepoints
from curate.runtime.files import write_sealed
from curate.trajectory import HEADER
from tests.job import curate, sets
from tests.pipeline.test_forecast import run_of


def test_memory_and_disk_stop_growing_where_the_budget_ends() -> None:
    sizes = Sizes(10, 30, 30, 10, 7, 9, 1000)
    found = [memory(run_of(t, memory=4, disk=50, gradients=14), sizes) for t in (3, 60, 6000)]
    assert [own["snapshots"] for own in found] == [(3 + 4) * 30, (4 + 4) * 30, (4 + 4) * 30]
    assert [own["recorded"] for own in found] == [(3 + 6) * 10, (14 + 6) * 10, (14 + 6) * 10]
    assert found[1]["adjoints"] == 60
    assert found[1]["gradients"] == 0
    assert found[1]["graph"] == max(7, 9)
    assert sum(found[1].values()) == 10 + 240 + 200 + 9 + 60
    assert memory(run_of(60, exact_jump=True), sizes)["gradients"] == 1000
    assert memory(run_of(60, targets=3), sizes)["adjoints"] == 180

    def files(steps: int, **options: Any) -> int:
        run = run_of(steps, memory=4, disk=50, **options)
        return disk(run, replace(sizes, state=90), 5, [1] * steps)["snapshots"]

    assert [files(t) for t in (3, 20, 6000)] == [0, 16 * (30 + HEADER), 50 * (30 + HEADER)]
    assert files(20, goes_back=False) == 0


@pytest.mark.parametrize(
    "settings",
    [
        ["selection.policy=loss"],
        ["selection.rounds=1"],
        [
            "model.hidden=[128]",
            "training.epochs=20",
            "selection.probing=0",
            "selection.horizon=20",
            "training.dtype=float64",
            "data.validation={a: rows.parquet, b: rows.parquet}",
        ],
    ],
)
def test_savepoints_take_what_the_plan_says(
    here: Path,
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of every offer one is written, and never are there more bytes than at the third."""
    given = sets("model.hidden=[512]", *settings)
    assert curate("recipe.yaml", "--plan", "--json", *given) == 0
    planned = json.loads(capsys.readouterr().out)["disk"]
    there = []

    def writing(path: Path, tree: Any) -> None:
        write_sealed(path, tree)
        there.append(sum(own.stat().st_size for own in path.parent.iterdir()))

    monkeypatch.setattr(savepoints, "write_sealed", writing)
    monkeypatch.setattr(savepoints, "SHARE", 1e9)
    assert curate("recipe.yaml", "--out", "out", "--quiet", *given) == 0
    assert len(there) >= 3
    assert max(there) == pytest.approx(planned["savepoints"], rel=0.1)
    assert planned["snapshots"] == 0
    assert planned["total"] == planned["savepoints"]
