"""Influences of a window: their sign and unit, whole runs, mistaken rules, models as they train."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from curate.datasets import TensorExamples
from curate.errors import ModelError, NonFiniteError
from curate.influence import Scoring, Target, WindowScores, score_window, target_losses
from curate.models import Classification, FlatModel, flat
from curate.rules import SGD, Adam, AdamW, Clipped, Grouped, Rule, State, as_sgd, initial_state
from curate.trajectory import Step, Task, record, replay
from tests import tiny

ROWS = 12


def test_positive_means_helps() -> None:
    """With plain SGD and one step, actual removal: the sign and, for a small step, the size."""
    task = tiny.task()
    rule, _ = tiny.rule_for("sgd")
    (step,) = tiny.steps(1, (1e-4,))
    start = tiny.start(task, rule)
    recording = record(task, rule, start, [step], snapshots=1)
    scores = score_window(task, rule, recording, tiny.targets())
    for i in range(len(step.rows)):
        without = step.weights.clone()
        without[i] = 0
        final = replay(task, rule, start, [step.reweight(without)])
        losses = target_losses(task.model, task.objective, tiny.targets(), final.theta)
        actual = losses - scores.target_losses
        torch.testing.assert_close(scores.influences[0][:, i], actual, rtol=1e-3, atol=1e-12)


def test_duplicated_rows_are_two_rows() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    (step,) = tiny.steps(1, lrs)
    doubled = step.keep(torch.tensor([0, 0, 1, 2, 3]))
    recording = record(task, rule, tiny.start(task, rule), [doubled], snapshots=1)
    scores = score_window(task, rule, recording, tiny.targets()).influences[0]
    assert scores.shape == (2, 5)
    torch.testing.assert_close(scores[:, 0], scores[:, 1])


def test_non_finite_scores_end_the_run_by_name() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(3, lrs)
    start = tiny.start(task, rule)
    recording = record(task, rule, start, steps, snapshots=3)
    spoiled = start.slots["v"].clone()
    spoiled[2] = float("nan")
    recording._kept._stack[0] = (0, State(start.theta, {"m": start.slots["m"], "v": spoiled}, 0))
    with pytest.raises(NonFiniteError, match=r"step 40: \d+ of 12 influences are not finite"):
        score_window(task, rule, recording, tiny.targets(), first_step=40)


def test_a_target_that_is_not_finite_ends_the_run_by_name() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("sgd")
    made = record(task, rule, tiny.start(task, rule), tiny.steps(3, lrs), snapshots=3)
    good, bad = tiny.targets()
    bad.examples.features[0] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=r"^after step 42: the loss of target b is nan; lower"):
        score_window(task, rule, made, [good, bad], first_step=40)


def test_means_over_targets_and_candidates() -> None:
    targets = [replace(t, weight=w) for t, w in zip(tiny.targets(), (3.0, 1.0), strict=True)]
    influences = [torch.tensor([[1.0, 0.0], [5.0, 4.0]]), torch.tensor([[-3.0], [1.0]])]
    losses = torch.tensor([1.0, 3.0])
    scores = WindowScores(influences, [], [], losses, [], targets, drifts=[0.5, 0.25])
    assert [values.tolist() for values in scores.overall] == [[2.0, 1.0], [-2.0]]
    assert scores.overall_loss == 1.5
    assert scores.drift == pytest.approx((0.5 * 2 + 0.5 * 1 + 0.25 * 2) / 3)


def sgd_by_hand(
    task: Task, thetas: list[Tensor], steps: list[Step], target: Target
) -> list[Tensor]:
    """-grad l_i . a_g with theta' = theta - lr g, along a run that was trained otherwise."""

    def losses(theta: Tensor, batch: Any) -> Tensor:
        z = functional_call(task.model.module, task.model.unpack(theta), batch["features"])
        return F.cross_entropy(z, batch["label"], reduction="none")

    at_end = target.examples.batch(torch.arange(len(target.examples)), task.model.device)
    adjoint = grad(lambda theta: losses(theta, at_end).mean())(thetas[-1])
    derivatives = []
    for theta, step in list(zip(thetas, steps, strict=False))[::-1]:
        batch = task.examples.batch(step.rows, task.model.device)
        gradients = jacrev(lambda theta, batch=batch: losses(theta, batch))(theta)
        derivatives.append(-step.lrs[0] * gradients @ adjoint)

        def mean(theta: Tensor, batch: Any = batch, w: Tensor = step.weights) -> Tensor:
            return (w * losses(theta, batch)).sum() / w.sum()

        bent = jacrev(grad(mean))(theta) @ adjoint
        adjoint = adjoint - step.lrs[0] * bent
    return derivatives[::-1]


@pytest.mark.parametrize("name", ["adamw", "sgd-nesterov"])
def test_a_mistaken_rule_scores_the_run_as_it_was_by_sgd_without_its_state(name: str) -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(5, lrs)
    start = tiny.start(task, rule)
    thetas = [replay(task, rule, start, steps[:k]).theta for k in range(6)]
    made = record(task, rule, start, steps, snapshots=2)
    scoring = Scoring(mistaken_rule=as_sgd(rule))
    scores = score_window(task, rule, made, tiny.targets(), scoring=scoring)
    for q, target in enumerate(tiny.targets()):
        for k, expected in enumerate(sgd_by_hand(task, thetas, steps, target)):
            scale = expected.abs().max()
            assert scale > 0
            assert (scores.derivatives[k][q] - expected).abs().max() <= 1e-7 * scale


def test_a_run_of_sgd_is_not_mistaken_for_another() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("sgd", clip=0.3)
    steps, influences = tiny.steps(4, lrs), []
    for mistaken in (None, as_sgd(rule)):
        made = record(task, rule, tiny.start(task, rule), steps, snapshots=4)
        scoring = Scoring(mistaken_rule=mistaken)
        scores = score_window(task, rule, made, tiny.targets(), scoring=scoring)
        influences.append(torch.stack(scores.influences))
    assert torch.equal(*influences)


def test_as_sgd_keeps_clipping_and_groups_and_nothing_else() -> None:
    rule: Rule = Clipped(Grouped((Adam(), SGD(momentum=0.9, weight_decay=0.1)), (3, 2)), 0.5)
    assert as_sgd(rule) == Clipped(Grouped((SGD(), SGD()), (3, 2)), 0.5)


class Photographs(nn.Module):
    """Convolutions, a norm and a linear layer, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 4, 3, groups=2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean(dim=(2, 3)))
        return out


def photographs() -> nn.Module:
    torch.manual_seed(0)
    return Photographs().double()


def influences(module: nn.Module, dtype: torch.dtype = torch.float64, horizon: int = 3) -> Tensor:
    """Of the rows of a window, shape (horizon, ROWS)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (ROWS,), generator=generator)
    data = TensorExamples(x, y, torch.arange(ROWS), dtype=dtype)
    task = Task(FlatModel(module), Classification(), data)
    step = Step(rows=torch.arange(ROWS), weights=torch.ones(ROWS), lrs=(0.01,), seed=0)
    steps = [replace(step, seed=k) for k in range(horizon)]
    made = record(
        task, AdamW(), initial_state(AdamW(), task.model.read()), steps, snapshots=horizon
    )
    scores = score_window(task, AdamW(), made, [Target("target", data)])
    return torch.stack([values[0] for values in scores.influences])


def whole(module: nn.Module) -> nn.Module:
    module.compile(backend="aot_eager")
    return module


def part(module: nn.Module) -> nn.Module:
    module.body.compile(backend="aot_eager")
    return module


def wrapped(module: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(module, backend="aot_eager")
    return compiled


@pytest.mark.parametrize("compiled", [whole, part, wrapped])
def test_compiled(compiled: Callable[[nn.Module], nn.Module]) -> None:
    """Also by one that has compiled code already."""
    module = compiled(photographs())
    module(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert torch.equal(influences(module), influences(photographs()))


def test_channels_last() -> None:
    module = photographs().to(memory_format=torch.channels_last)
    layout = module.body[0].weight.stride()
    expected = influences(photographs())
    assert (influences(module) - expected).norm() <= 1e-9 * expected.norm()
    assert module.body[0].weight.stride() == layout


def test_weights_in_half_precision_are_refused_beyond_one_step() -> None:
    module = photographs().to(torch.bfloat16)
    assert influences(module, torch.bfloat16, horizon=1).isfinite().all()
    with pytest.raises(ModelError, match="keep them in float32"):
        influences(module, torch.bfloat16, horizon=2)


def test_own_settings_of_products_come_back() -> None:
    """TF32 as the caller has set it, in the old way and in the new."""
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        for mine in (True, False):
            products.allow_tf32 = mine
            with flat._products(not mine):
                assert products.allow_tf32 is not mine
            assert products.allow_tf32 is mine
    finally:
        products.allow_tf32 = before
