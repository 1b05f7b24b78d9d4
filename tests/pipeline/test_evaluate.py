"""Retraining on what is kept: as torch trains on those rows alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from curate.errors import NonFiniteError
from curate.pipeline.evaluate import retrain, spread
from curate.pipeline.job import Job, prepare
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests.job import RECIPE


def job(*overrides: str) -> Job:
    recipe = check_recipe(parse(RECIPE), ["training.dtype=float64", *overrides])
    return prepare(recipe, torch.device("cpu"))


def test_it_is_what_torch_makes_of_the_rows_kept(here: Path) -> None:
    prepared = job()
    kept = np.arange(len(prepared.data.examples)) % 3 != 0
    test = prepared.data.test
    assert test is not None
    ticks: list[int] = []
    found = retrain(prepared, kept, 1, {"test": test}, lambda: ticks.append(1))["test"]

    task, _, _ = prepared.start(1)
    module: Any = task.model.module
    steps = prepared.steps(1, torch.from_numpy(np.flatnonzero(kept)))
    assert len(ticks) == len(steps) == prepared.total_steps()
    decay = prepared.recipe.training.optimizer.weight_decay
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=decay)
    x, y = task.examples.all_features(), task.examples.labels
    for step in steps:
        assert kept[step.rows.numpy()].all()
        optimizer.param_groups[0]["lr"] = step.lrs[0]
        optimizer.zero_grad()
        F.cross_entropy(module(x[step.rows]), y[step.rows]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = module(test.all_features())
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, test.labels)), rel=1e-9)
    right = (logits.argmax(dim=1) == test.labels).double().mean()
    assert found["accuracy"] == pytest.approx(float(right))


def test_a_retraining_that_diverges_is_told_with_its_seed(here: Path) -> None:
    prepared = job("training.optimizer={kind: sgd, lr: 1e6, momentum: 0.9}", "training.epochs=20")
    kept = np.ones(len(prepared.data.examples), dtype=bool)
    with pytest.raises(NonFiniteError, match="retraining with seed 3 on 72 rows ends in"):
        retrain(prepared, kept, 3, {"test": prepared.data.test}, lambda: None)


def test_a_single_value_has_no_spread() -> None:
    assert spread([3.0]) == 0
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1))
