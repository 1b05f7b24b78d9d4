"""The table of a tuning, and why its best pair is the best."""

from dataclasses import replace

import optuna

from curate.influence.cost import RunShape
from curate.recipe import Tune, check_recipe
from curate.tuning import Grid, Pair, Tuned
from curate.tuning.study import Entry, table_of
from curate.tuning.tune import why_best

GRID = Grid((1, 4, 16), (1e-3, 1e-2), 16, RunShape([0.5] * 16, 16, 4), Tune(budget=0.5), 16, 0, 1)
COLUMNS = {"features": ["x"], "label": "y"}
DATA = {"train": "x.parquet", "validation": {"fraction": 0.2}, "columns": COLUMNS}


def finished(number: int, value: float | None, **notes: object) -> Entry:
    return Entry(number, "finished", value, {"passes": 100.0, "seconds": 1.0} | notes)


def tuned(metric: str = "loss", values: tuple[float, float] = (0.5, 0.25)) -> Tuned:
    grid = replace(GRID, tune=Tune(metric=metric)) if metric != "loss" else GRID
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
        recipe=check_recipe({"data": DATA}),
        pair=best,
        value=values[1],
        table=table_of(entries, grid, best),
        study=optuna.create_study(),
        grid=grid,
        everything={1e-3: 0.75, 1e-2: None},
        test=None,
        worth=None,
    )


def test_the_table_has_every_pair_and_what_became_of_it() -> None:
    table = tuned().table
    lines = {(line["horizon"], line["learning_rate"]): line for line in table.to_dicts()}
    outcomes = {where: line["outcome"] for where, line in lines.items()}
    assert outcomes == {
        (None, 1e-3): "pilot",
        (1, 1e-3): "best",
        (4, 1e-3): "beaten",
        (16, 1e-3): "dropped",
        (None, 1e-2): "pilot",
        (1, 1e-2): "failed",
        (4, 1e-2): "untried",
        (16, 1e-2): "untried",
    }
    assert lines[16, 1e-3]["reason"] == "too wrong"
    assert lines[4, 1e-2]["error"] == 0.5
    assert lines[4, 1e-3]["values"] == [0.5] * 3
    assert tuned().passes == 500.0


def test_why_best() -> None:
    assert why_best(tuned()) == (
        "best: horizon 1 with learning rate 0.001: loss 0.25, the lowest of 3 runs; its influences "
        "are expected to be off by 10 %; 1 of 6 pairs were not to be trusted"
    )
    assert "accuracy 0.9, the highest of 3 runs" in why_best(tuned("accuracy", (0.5, 0.9)))
