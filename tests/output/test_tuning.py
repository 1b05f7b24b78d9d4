"""`curate tune` in words and in a picture."""

from pathlib import Path

import numpy as np
import optuna
import polars as pl
import pytest
from PIL import Image

from curate.cli.summary import describe_tuning
from curate.influence.cost import RunShape
from curate.output.figures import plot_tuning
from curate.recipe import Tune, check_recipe
from curate.tuning import Grid, Pair, Tuned
from curate.tuning.study import Entry, table_of
from curate.tuning.tune import why_best

SHAPE = RunShape([0.5] * 16, 16, 4, target_share=1.0)
PLAN = Grid((1, 4, 16), (1e-3, 1e-2), 16, SHAPE, Tune(budget=0.5), 16, 0, 1)
RECIPE = check_recipe(
    {
        "data": {
            "train": "x.parquet", "validation": {"fraction": 0.2},
            "columns": {"features": ["x"], "label": "y"},
        }
    }
)  # fmt: skip


def finished(number: int, value: float | None, **notes: object) -> Entry:
    return Entry(number, "finished", value, {"passes": 100.0, "seconds": 1.0} | notes)


def tuned(metric: str = "loss", values: tuple[float, float] = (0.5, 0.25)) -> Tuned:
    plan = Grid(*PLAN.__dict__.values()) if metric == "loss" else None
    plan = plan or Grid((1, 4, 16), (1e-3, 1e-2), 16, SHAPE, Tune(metric=metric), 16, 0, 1)
    views = [
        {"horizon": k, "signal": 2.0, "error": e, "jump": 0.0, "propagation": 0.0, "probes": 3}
        for k, e in ((1, 0.2), (4, 0.5), (16, 3.0))
    ]
    entries = {
        1e-3: finished(0, 0.75, views=views),
        1e-2: finished(1, None, views=views),
        Pair(16, 1e-3): Entry(0, "finished", None, {"dropped": True, "reason": "too wrong"}),
        Pair(4, 1e-3): finished(1, values[0], values=[values[0]] * 3),
        Pair(1, 1e-3): finished(2, values[1], values=[values[1]] * 3),
        Pair(1, 1e-2): finished(3, None, reason="step 3: diverged"),
    }
    best = Pair(1, 1e-3)
    return Tuned(
        recipe=RECIPE, pair=best, value=values[1], table=table_of(entries, plan, best),
        study=optuna.create_study(), grid=plan, everything={1e-3: 0.75, 1e-2: None},
        test={"kept": [{metric: 0.3}, {metric: 0.5}], "everything": [{metric: 0.8}]},
        worth=None,
    )  # fmt: skip


def test_the_table_has_every_pair_and_what_became_of_it() -> None:
    table = tuned().table
    found = {(line["horizon"], line["learning_rate"]): line for line in table.to_dicts()}
    outcomes = {where: line["outcome"] for where, line in found.items()}
    assert outcomes == {
        (None, 1e-3): "pilot", (None, 1e-2): "pilot", (1, 1e-3): "best", (4, 1e-3): "beaten",
        (16, 1e-3): "dropped", (1, 1e-2): "failed", (4, 1e-2): "untried", (16, 1e-2): "untried",
    }  # fmt: skip
    assert found[16, 1e-3]["reason"] == "too wrong"
    assert found[4, 1e-2]["error"] == 0.5
    assert found[4, 1e-3]["values"] == [0.5] * 3
    assert tuned().passes == 500.0


def test_words(tmp_path: Path) -> None:
    lines = describe_tuning(tuned().summary(), tuned().table, tmp_path).splitlines()
    assert lines[0].split() == ["K", "\\", "lr", "0.001", "0.01"]
    assert lines[1].split() == ["1", "0.250*", "-"]
    assert lines[2].split() == ["4", "0.500", "."]
    assert lines[3].split() == ["full", "(16)", "x", "."]
    assert lines[4].split() == ["all", "rows", "0.750", "-"]
    assert why_best(tuned()) in lines
    assert "test loss, retrained: 0.400 ± 0.141 on what it keeps, 0.800 on everything" in lines[-4]
    assert lines[-3] == "what choosing is worth was not measured: a training for it diverges"
    share = 500.0 / PLAN.grid_passes()
    assert lines[-2] == f"spent {share:.0%} of what runs of all 6 pairs would cost"


def test_why_best() -> None:
    assert why_best(tuned()) == (
        "best: horizon 1 with learning rate 0.001: loss 0.25, the lowest of 3 runs; its influences "
        "are expected to be off by 10 %; 1 of 6 pairs were not to be trusted"
    )
    assert "accuracy 0.9, the highest of 3 runs" in why_best(tuned("accuracy", (0.5, 0.9)))


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_picture_shows_values_trust_and_the_best(tmp_path: Path, metric: str) -> None:
    """Of another result, another picture: the colors and the hatching come from the table."""
    plot_tuning(tuned(metric).summary(), tuned(metric).table, tmp_path / "one.png")
    plot_tuning(
        tuned(metric, (0.5, 0.1)).summary(), tuned(metric, (0.5, 0.1)).table, tmp_path / "two.png"
    )
    one, two = (np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "two.png"))
    assert one.shape[2] >= 3
    assert one.shape != two.shape or not np.array_equal(one, two)
    reds = (one[..., 0] > 190) & (one[..., 1] < 60) & (one[..., 2] < 90)
    assert reds.sum() > 50, "no line around what can be trusted"


def test_a_picture_of_one_pair(tmp_path: Path) -> None:
    plan = Grid((1,), (1e-3,), 1, SHAPE, Tune(), 1, 0, 1)
    view = {
        "horizon": 1, "signal": 0.0, "error": 0.0, "jump": 0.0, "propagation": 0.0, "probes": 1
    }  # fmt: skip
    pair = Pair(1, 1e-3)
    entries = {
        1e-3: finished(0, 0.5, views=[view]),
        Pair(1, 1e-3): finished(0, 0.0, values=[0.0]),
    }
    one = Tuned(
        RECIPE, pair, 0.0, table_of(entries, plan, pair), optuna.create_study(), plan,
        {1e-3: 0.5}, None, None,
    )  # fmt: skip
    plot_tuning(one.summary(), one.table, tmp_path / "one.png")
    assert isinstance(one.table, pl.DataFrame)
    assert (tmp_path / "one.png").stat().st_size > 1000
