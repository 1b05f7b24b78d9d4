"""Objectives of the user's own: functions, objects, and paths to them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.errors import ModelError
from curate.models import Classification, FunctionObjective, as_objective, load_objective

BATCH = {"features": torch.ones(6, 4)}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the working directory."""
    (tmp_path / "mine_for_losses.py").write_text(
        "from curate.models import Classification\n"
        "class Odd(Exception): pass\n"
        "class Mine(Classification): pass\n"
        "def failing(model, batch): raise Odd('boom')\n"
        "def loss(model, batch): return model(batch['features']).square().sum(1)\n"
        "def reduced(model, batch): return model(batch['features']).square().mean()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine_for_losses", None)


def test_objectives_by_path(mine: None) -> None:
    layer = nn.Linear(4, 2)
    objective = load_objective("mine_for_losses:loss")
    assert torch.equal(objective.losses(layer, BATCH), layer(BATCH["features"]).square().sum(1))
    assert torch.equal(objective.sizes(BATCH), torch.ones(6))
    assert objective.metrics(layer, BATCH) == {}
    assert isinstance(load_objective("mine_for_losses:Mine"), Classification)
    for name, message in (
        (
            "reduced",
            r"must return one loss per example, shape \(6,\), but got a tensor of shape \(\)",
        ),
        ("failing", "objective: mine_for_losses:failing raised Odd: boom"),
    ):
        with pytest.raises(ModelError, match=message):
            load_objective(f"mine_for_losses:{name}").losses(layer, BATCH)
    with pytest.raises(ModelError, match="objective: mine_for_losses:number is a int; it must be"):
        load_objective("mine_for_losses:number")


def test_what_is_given_in_python_becomes_an_objective() -> None:
    objective = Classification()
    assert as_objective(objective, "name") is objective
    assert isinstance(as_objective(Classification, "name"), Classification)

    def broken(_model: Any, _batch: Any) -> Tensor:
        raise ZeroDivisionError

    made = as_objective(broken, "name")
    assert isinstance(made, FunctionObjective)
    with pytest.raises(ZeroDivisionError):  # the caller's own code, with its traceback
        made.losses(nn.Identity(), BATCH)
