"""The cost model against passes that are counted: every call of the model, by its rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from curate.influence import cost
from curate.influence.cost import passes
from curate.selection.budget import Budget
from curate.selection.driver import Selector
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead, Policy, Random, SmallLoss
from tests import tiny

T, SIZE = 13, 6


@pytest.fixture
def counted_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices by calls alone: what a difference of gradients and slopes take beside is measured."""
    prices = {"BACK": 1.0, "CENTRAL": 2.0, "SLOPES": 0.0, "FIRST": 1.0, "PIECES": 1.0}
    for name, price in prices.items():
        monkeypatch.setattr(cost, name, price)


def count(selector: Selector, run: Callable[[], object]) -> float:
    """Passes of a run: a call with a graph is one for SIZE rows, one without a third."""
    total = 0.0

    def note(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal total
        total += len(arguments[0]) / SIZE * (1.0 if torch.is_grad_enabled() else 1 / 3)

    handle = selector.judge.task.model.module.register_forward_pre_hook(note)
    try:
        run()
    finally:
        handle.remove()
    return total


def selector(policy: Policy, horizon: int, targets: int, keep: float, **options: Any) -> Selector:
    task, (rule, _) = tiny.task(), tiny.rule_for("adamw")
    judge = Judge(task, rule, policy, tiny.targets()[:targets], snapshots=64, **options)
    return Selector(judge, Budget(fraction=keep), horizon)


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("horizon", [1, 4, T])
def test_a_run_by_influence_costs_what_is_counted(
    counted_prices: None, horizon: int, rounds: int, targets: int, keep: float
) -> None:
    chosen = selector(LookAhead(rounds), horizon, targets, keep)
    steps = tiny.steps(T, size=SIZE)
    counted = count(
        chosen, lambda: chosen.run(tiny.start(chosen.judge.task, chosen.judge.rule), steps)
    )
    assert counted == pytest.approx(passes(chosen.shape(steps)).total)


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize("horizon", [1, 4, T])
@pytest.mark.parametrize("policy", [SmallLoss(), Random(24)], ids=["loss", "random"])
def test_other_policies_cost_what_is_counted(
    counted_prices: None, policy: Policy, horizon: int, keep: float
) -> None:
    chosen = selector(policy, horizon, 1, keep)
    steps = tiny.steps(T, size=SIZE)
    counted = count(
        chosen, lambda: chosen.run(tiny.start(chosen.judge.task, chosen.judge.rule), steps)
    )
    assert counted == pytest.approx(passes(chosen.shape(steps)).total)
