"""From a recipe to its rule: what moves which parameters, and how."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from curate.pipeline.job import Job, prepare
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.rules import SGD, Adafactor, AdamW, Grouped, Muon
from curate.trajectory import replay
from tests.job import RECIPE


def job(optimizer: dict[str, Any], dtype: str = "float64") -> Job:
    raw = parse(RECIPE)
    raw["training"] |= {"optimizer": optimizer, "dtype": dtype}
    return prepare(check_recipe(raw), torch.device("cpu"))


def test_every_group_has_its_optimizer_and_its_shapes(here: Path) -> None:
    prepared = job(
        {
            "lr": 0.3,
            "betas": [0.8, 0.9],
            "groups": [
                {"match": ["1.weight"], "kind": "muon", "lr": 0.02, "ns_steps": 3},
                {"match": ["*.weight"], "kind": "adafactor", "eps": [None, 0.5]},
                {"match": ["1.*"], "weight_decay": 0.5},
                {"match": ["3.*"], "kind": "sgd", "lr": 0.4, "momentum": 0.1},
            ],
        },
        dtype="float32",
    )
    task, rule, _ = prepared.start(0)
    assert rule == Grouped(
        (
            AdamW(betas=(0.8, 0.9)),
            Muon(((8, 4),), ns_steps=3),
            Adafactor(((2, 8),), eps=(torch.finfo(torch.float32).eps, 0.5)),
            AdamW(betas=(0.8, 0.9), weight_decay=0.5),
            SGD(momentum=0.1),
        ),
        (0, 32, 16, 8, 2),
    )
    assert task.model.names == ("1.weight", "3.weight", "1.bias", "3.bias")
    assert prepared.steps(0)[0].lrs == (0.3, 0.02, 0.01, 0.3, 0.4)


def test_mixed_optimizers_train_as_torchs_two_do(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)  # torch's own Muon, without its cast
    prepared = job({"lr": 0.03, "groups": [{"match": ["*.weight"], "kind": "muon", "lr": 0.02}]})
    task, rule, state = prepared.start(0)
    steps = prepared.steps(0)
    found = replay(task, rule, state, steps).theta

    module = task.model.module
    weights, biases = ([p for p in module.parameters() if p.ndim == n] for n in (2, 1))
    optimizers = (torch.optim.Muon(weights, lr=0.02), torch.optim.AdamW(biases, lr=0.03))
    for step in steps:
        batch = task.examples.batch(step.rows, torch.device("cpu"))
        loss = prepared.objective.losses(module, batch).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert (found - task.model.read()).abs().max() <= 1e-12
    assert (found - state.theta).abs().max() > 0.05


def test_the_scored_runs_model_is_built_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained one takes its time to load; nothing is trained in place."""
    from curate.pipeline import job as module
    from curate.pipeline.forecast import plan_select
    from curate.pipeline.select import run_select

    built = []
    build = module.build_module

    def counted(*arguments: Any) -> Any:
        built.append(arguments)
        return build(*arguments)

    monkeypatch.setattr(module, "build_module", counted)
    recipe = check_recipe(parse(RECIPE))
    plan_select(recipe, here / "out")
    assert len(built) == 1
    run_select(recipe, here / "out")
    assert len(built) == 2


def test_a_start_is_the_same_again_after_training(here: Path) -> None:
    prepared = job({"lr": 0.3})
    task, rule, state = prepared.start(0)
    trained = replay(task, rule, state, prepared.steps(0))
    again = prepared.start(0)
    assert again[0].model is task.model
    assert torch.equal(again[2].theta, state.theta)
    assert not torch.equal(trained.theta, state.theta)
    assert not torch.equal(prepared.start(1)[2].theta, state.theta)
