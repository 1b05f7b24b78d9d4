"""What pairs are measured on, and that a trial costs what the plan says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.influence import cost
from curate.pipeline import job as jobs
from curate.pipeline.job import prepare
from curate.pipeline.score import selector_for
from curate.pipeline.verify import RemovalPlan, run_verify
from curate.recipe import Recipe, load_recipe
from curate.runtime.progress import Phases
from curate.tuning.grid import PROBING, Pair
from curate.tuning.trials import set_up, with_pair

BATCH = 12


@pytest.fixture
def passes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], float]:
    """Counts a run's passes: calls of models by their rows, one with a graph 1, without a third."""
    prices = {"BACK": 1.0, "CENTRAL": 2.0, "SLOPES": 0.0, "FIRST": 1.0, "PIECES": 1.0}
    for name, price in prices.items():
        monkeypatch.setattr(cost, name, price)
    total, build = 0.0, jobs.build_module

    def note(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal total
        total += len(arguments[0]) / BATCH * (1.0 if torch.is_grad_enabled() else 1 / 3)

    def counted(*arguments: Any) -> Any:
        module = build(*arguments)
        module.register_forward_pre_hook(note)
        return module

    def count(run: Callable[[], object]) -> float:
        nonlocal total
        total = 0.0
        run()
        return total

    monkeypatch.setattr(jobs, "build_module", counted)
    return count


def recipe(*overrides: str) -> Recipe:
    tune = "tune={horizons: [1, 4, 30], learning_rates: [1e-2], budget: 1.0, seeds: [0, 1]}"
    settings = (f"training.batch_size={BATCH}", "training.epochs=20", "selection.probing=0")
    return load_recipe("recipe.yaml", (tune, *settings, *overrides))


@pytest.mark.parametrize(
    "settings",
    [
        ["selection.rounds=1"],
        ["selection.rounds=2"],
        ["selection.rounds=1", "selection.keep=auto", "selection.judge=true"],
    ],
)
@pytest.mark.parametrize("horizon", [1, 4, 30])
def test_a_run_costs_what_is_counted(
    here: Path, passes_of: Callable[..., float], horizon: int, settings: list[str]
) -> None:
    bench = set_up(prepare(recipe(*settings), torch.device("cpu")))
    counted = passes_of(lambda: bench.run(Pair(horizon, 1e-2), Phases()))
    assert counted == pytest.approx(bench.grid.run_passes(horizon), rel=0.15)


def test_a_pilot_costs_what_is_counted(here: Path, passes_of: Callable[..., float]) -> None:
    bench = set_up(prepare(recipe(), torch.device("cpu")))
    counted = passes_of(lambda: bench.run_pilot(1e-2, lambda: None))
    assert counted == pytest.approx(bench.grid.pilot_passes(), rel=0.3)
    assert PROBING > 0


@pytest.mark.parametrize("horizon", [4, 30])
@pytest.mark.parametrize("occurrences", ["every", "last"])
def test_verifying_costs_what_is_counted(
    here: Path,
    passes_of: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch,
    horizon: int,
    occurrences: Any,
) -> None:
    monkeypatch.setattr("curate.pipeline.verify.seconds_of", lambda *_: 1.0)
    checked = recipe(f"selection.horizon={horizon}", "selection.rounds=1", "selection.epochs=10")
    counted = passes_of(lambda: run_verify(checked, here / "out", RemovalPlan(30, occurrences)))
    job = prepare(checked, torch.device("cpu"))
    selector, _, steps = selector_for(job, "look_ahead")
    shape = selector.shape(steps)
    left_out = cost.leaving_out_passes(shape, 30, 6, last=occurrences == "last")
    assert counted == pytest.approx(cost.passes(shape).total + left_out, rel=0.15)


def test_a_pair_keeps_the_ratio_of_its_groups_learning_rates(here: Path) -> None:
    groups = "training.optimizer.groups=[{match: ['*bias'], lr: 2e-2}]"
    made = with_pair(recipe(groups, "training.optimizer.lr=1e-2"), Pair(8, 3e-3), 30)
    assert made.training.optimizer.lr == 3e-3
    assert made.training.optimizer.groups[0].lr == pytest.approx(6e-3)
    assert (made.selection.horizon, made.tune) == (8, None)
    assert with_pair(made, Pair(30, 3e-3), 30).selection.horizon == "full"
