"""Several targets made one: against runs with one target each, and by hand."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset

from curate.influence import Probing, Scoring, Target, score_window
from curate.pipeline.job import Job, prepare
from curate.pipeline.score import selector_for
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.runtime.progress import Phases
from curate.selection.scale import standardize
from curate.trajectory import record
from curate.tuning.grid import Pair
from curate.tuning.trials import set_up
from tests import tiny
from tests.job import RECIPE, curate, rows, sets, verify

BOTH = "data.validation={near: near.parquet, far: far.parquet}"
WHOLE_RUN = ["data.label_noise=null", "training.epochs=1", "selection.horizon=full"]


@pytest.fixture
def two(here: Path) -> Path:
    """Two targets whose losses are not on one scale: the rows, and rows ten times as far out."""
    near = rows(30)
    near.to_parquet("near.parquet")
    far = {name: near[name][:] for name in near.column_names}
    far["x"] = [[10 * x for x in row] for row in reversed(far["x"])]
    Dataset.from_dict(far).to_parquet("far.parquet")
    return here


def select(*overrides: str, out: str = "out") -> pl.DataFrame:
    settings = sets(*WHOLE_RUN, *overrides)
    assert curate("recipe.yaml", "--out", out, "--overwrite", *settings) == 0
    return pl.read_parquet(f"{out}/scores.parquet").sort("row")


def job(*overrides: str) -> Job:
    return prepare(check_recipe(parse(RECIPE), [*WHOLE_RUN, *overrides]), torch.device("cpu"))


AGGREGATED = {
    "selection.weights=null": [0.5, 0.5],
    "selection.weights={near: 3, far: 1}": [0.75, 0.25],
    "selection.weights={near: 0, far: 7}": [0.0, 1.0],
}


@pytest.mark.parametrize("override", AGGREGATED)
def test_an_aggregate_is_that_of_runs_with_one_target_each(two: Path, override: str) -> None:
    """In one round over the whole run nothing of what is kept comes back into the scores."""
    once = ["selection.rounds=1", "selection.probing=0", "training.batch_size=16"]
    alone = [select(*once, f"data.validation={name}.parquet") for name in ("near", "far")]
    found = select(*once, BOTH, override)
    influences = np.array([own["influence"].to_numpy() for own in alone])
    for name, own in zip(("near", "far"), influences, strict=True):
        np.testing.assert_allclose(found[f"influence/{name}"].to_numpy(), own, rtol=1e-5)
    weights = AGGREGATED[override]
    mean = np.average(influences, axis=0, weights=weights)
    scale = np.abs(influences).max()
    np.testing.assert_allclose(found["influence"].to_numpy(), mean, rtol=1e-5, atol=1e-6 * scale)
    expected = np.zeros(len(found))
    prepared = job(*once, BOTH, override)
    assert prepared.data.classes is not None
    for step in prepared.steps(0):
        own = step.rows.numpy()
        expected[own] = standardize(mean[own], prepared.data.classes[own])
    selector, state, steps = selector_for(prepared, "look_ahead", halved=True)
    scores = selector.run(state, steps)
    np.testing.assert_allclose(scores.score, expected, atol=2e-4)


@pytest.mark.parametrize("jump_bytes", [None, 2**20], ids=["linear", "exact"])
def test_a_target_of_weight_0_has_no_part_in_what_is_expected(jump_bytes: int | None) -> None:
    """Removals drawn and followed, and losses, are those of a run without it."""
    task, (rule, _) = tiny.task(), tiny.rule_for("adamw")
    one, other = tiny.targets()
    steps = tiny.steps(4)
    found = []
    for targets in ([one], [one, Target("b", other.examples, weight=0.0)]):
        recording = record(task, rule, tiny.start(task, rule), steps, snapshots=9)
        how = {"scoring": Scoring(jump_bytes=jump_bytes), "probing": Probing(5, 1)}
        found.append(score_window(task, rule, recording, targets, **how))
    alone, both = found
    assert both.overall_loss == pytest.approx(alone.overall_loss)
    for mine, theirs in zip(both.overall, alone.overall, strict=True):
        torch.testing.assert_close(mine, theirs)
    for probe, like in zip(both.probes, alone.probes, strict=True):
        assert (probe.step, probe.position) == (like.step, like.position)
        for name in ("size", "linear", "exact", "actual"):
            assert getattr(probe, name) == pytest.approx(getattr(like, name), rel=1e-9)


def test_verify_leaves_out_for_the_weighted_loss(two: Path) -> None:
    alone = "data.validation=near.parquet"
    weighted = [BOTH, "selection.weights={near: 1, far: 0}"]
    tables = []
    for name, overrides in (("one", [alone]), ("both", weighted)):
        select(*overrides, out=name)
        assert verify(name, "--examples", "5") == 0
        tables.append(pl.read_parquet(f"{name}/verify.parquet").sort("row"))
        assert json.loads(Path(f"{name}/verify.json").read_text())["reproduced"]
    for column in ("row", "influence", "actual"):
        one, both = (table[column].to_numpy() for table in tables)
        np.testing.assert_allclose(both, one, rtol=1e-3, atol=1e-7)


def test_tune_judges_by_the_weighted_loss(two: Path) -> None:
    alone = job("data.validation=near.parquet", "tune.budget=0.5")
    both = job(
        BOTH,
        "tune.budget=0.5",
        "selection.weights={near: 2, far: 0}",
    )
    benches = [set_up(one) for one in (alone, both)]
    everything = [bench.run_pilot(1e-2, lambda: None)[0] for bench in benches]
    assert everything[0] == pytest.approx(everything[1])
    values = [bench.run(Pair(4, 1e-2), Phases())[1] for bench in benches]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    even = set_up(job(BOTH, "tune.budget=0.5")).run_pilot(1e-2, lambda: None)[0]
    assert even != pytest.approx(everything[0], rel=1e-2)
