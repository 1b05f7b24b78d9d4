"""The exact jump against the step really done without the example."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.errors import ModelError
from curate.influence import (
    Differences,
    Scoring,
    final_adjoint,
    influence,
    leave_out,
    score_window,
    target_gradients,
)
from curate.influence.adjoint import Linearization, backward_step
from curate.influence.jump import exact_jump
from curate.models import FlatModel
from curate.rules import Adjoint, Rule, State
from curate.trajectory import Step, Task, gradient, record, replay
from tests import tiny

REMOVALS = ("renormalised", "fixed")
MEMORY = 2**20


def adjoint_of(state: State) -> Adjoint:
    """Any adjoint will do: the jump is an inner product with it."""
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(2, t.numel(), generator=generator, dtype=torch.float64) for t in state.tensors()
    )


def linearized(task: Task, rule: Rule, state: State, step: Step) -> Linearization:
    return Linearization(rule, state, step, gradient(task, state.theta, step), adjoint_of(state))


def by_hand(task: Task, at: Linearization) -> dict[str, Tensor]:
    """Each example left out of the step in turn, by the rule's own update; by removal."""
    step, state, lrs = at.step, at.state, at.step.lrs
    after = at.rule.update(at.grad.mean, state, lrs)
    terms = step.weights * at.grad.sizes
    changes: dict[str, list[Tensor]] = {removal: [] for removal in REMOVALS}
    for i in range(len(step.rows)):
        weights = step.weights.clone()
        weights[i] = 0
        mean = gradient(task, state.theta, step.reweight(weights)).mean
        shares = {"renormalised": 1.0, "fixed": float(1 - terms[i] / terms.sum())}
        for removal, share in shares.items():
            without = at.rule.update(share * mean, state, lrs)
            moved = zip(without.tensors(), after.tensors(), at.adjoint, strict=True)
            parts = [((m - a) * cotangent).sum(1) for m, a, cotangent in moved]
            changes[removal].append(torch.stack(parts).sum(0))
    return {removal: torch.stack(rows, dim=1) for removal, rows in changes.items()}


@pytest.mark.parametrize(
    ("micro", "cuts", "grouped", "dropout"),
    [
        (0, (), False, 0.0),
        (0, (), True, 0.3),
        (4, (), False, 0.3),
        (4, (), True, 0.0),
        (0, (1, 4), False, 0.0),
        (0, (1, 4), True, 0.3),
    ],
)
@pytest.mark.parametrize("name", tiny.RULES)
def test_the_jump_is_the_step_without_the_example(
    name: str, micro: int, cuts: tuple[int, ...], grouped: bool, dropout: float
) -> None:
    """Every pair of chunks, groups and dropout; clipped or not, in both senses of removal."""
    task = tiny.task(dropout=dropout, grouped=grouped)
    for clip in (None, 0.3):
        rule, lrs = tiny.rule_for(name, task.model.group_shapes, clip)
        steps = tiny.steps(3, lrs, micro=micro)
        state = replay(task, rule, tiny.start(task, rule), steps[:2])
        at = linearized(task, rule, state, replace(steps[2], cuts=cuts, scale=0.7))
        for removal, expected in by_hand(task, at).items():
            change = exact_jump(task, at, removal, MEMORY)
            assert expected.abs().max() > 1e-6
            assert (change - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_memory_changes_nothing_but_the_pieces() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    at = linearized(task, rule, tiny.start(task, rule), tiny.steps(1, lrs)[0])
    whole, pieces = (exact_jump(task, at, "renormalised", memory) for memory in (MEMORY, 1))
    assert torch.allclose(whole, pieces, rtol=1e-7)


def test_for_a_small_weight_the_jump_is_linear() -> None:
    """The error of the derivative is of second order in what is removed."""
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    state = replay(task, rule, tiny.start(task, rule), tiny.steps(2, lrs))
    errors = []
    for weight in (1e-2, 1e-3):
        step = tiny.steps(3, lrs)[2]
        weights = step.weights.clone()
        weights[1] = weight
        at = linearized(task, rule, state, step.reweight(weights))
        back = backward_step(task, at, Differences(), propagate=False)
        linear = influence(back.derivatives, weights, at.grad.sizes, "renormalised")[:, 1]
        exact = exact_jump(task, at, "renormalised", MEMORY)[:, 1]
        errors.append(float(((exact - linear) / linear).abs().max()))
    assert errors[1] < 0.15 * errors[0]


def test_a_step_of_one_loses_its_whole_gradient() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adam")
    at = linearized(task, rule, tiny.start(task, rule), tiny.steps(1, lrs, size=1)[0])
    for removal, expected in by_hand(task, at).items():
        assert torch.allclose(exact_jump(task, at, removal, MEMORY), expected, rtol=1e-7)


def test_dropout_that_would_fall_otherwise_is_refused() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adam")
    at = linearized(task, rule, tiny.start(task, rule), tiny.steps(1, lrs)[0])
    with pytest.raises(ModelError, match=r"the batch had .* more memory"):
        exact_jump(task, at, "renormalised", memory=1)


def test_scores_in_float32_are_those_of_float64() -> None:
    scores = []
    for dtype in (torch.float32, torch.float64):
        task = tiny.task(dtype=dtype)
        rule, lrs = tiny.rule_for("adamw")
        steps = [step.reweight(step.weights.to(dtype)) for step in tiny.steps(4, lrs)]
        made = record(task, rule, tiny.start(task, rule), steps, snapshots=4)
        scored = score_window(
            task, rule, made, tiny.targets(dtype), scoring=Scoring(jump_bytes=MEMORY)
        )
        scores.append(torch.stack(scored.influences))
    scale = scores[1].abs().max()
    assert (scores[0].double() - scores[1]).abs().max() < 1e-3 * scale


class Height:
    """A loss linear in the parameters of a linear model: gradients that never change."""

    def losses(self, model: Any, batch: Any) -> Tensor:
        return (model(batch["features"]) * batch["label"][:, None]).sum(dim=1)

    def sizes(self, batch: Any) -> Tensor:
        return torch.ones(len(batch["label"]))

    def metrics(self, _model: Any, _batch: Any) -> dict[str, Tensor]:
        return {}


def losses_without(task: Task, rule: Rule, state: State, steps: list[Step], removal: str) -> Tensor:
    """Losses of the targets after `steps`, each example left out of the first in turn: (Q, n)."""
    losses = []
    for i in range(len(steps[0].rows)):
        without = leave_out(steps[0], i, torch.ones(6), removal)
        final = replay(task, rule, state, [without, *steps[1:]])
        losses.append(target_gradients(task.model, task.objective, tiny.targets(), final.theta)[0])
    return torch.stack(losses, dim=1)


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("name", ["adam-l2", "adamw", "rmsprop-centered", "sgd-nesterov"])
def test_where_gradients_never_change_two_steps_are_exact(name: str, removal: str) -> None:
    """Without curvature nothing is linear any more, the rule of the next step included."""
    model = FlatModel(nn.Linear(4, 3), dtype=torch.float64)
    task = replace(tiny.task(), objective=Height(), model=model)
    rule, lrs = tiny.rule_for(name)
    steps, state = tiny.steps(2, lrs), tiny.start(task, rule)
    made = record(task, rule, state, steps, snapshots=2)
    scored = score_window(
        task, rule, made, tiny.targets(), scoring=Scoring(removal=removal, jump_bytes=MEMORY)
    )
    without = losses_without(task, rule, state, steps, removal)
    actual = without - scored.target_losses[:, None]
    assert torch.allclose(scored.influences[0], actual, rtol=1e-7, atol=1e-12)


def test_the_next_step_of_the_rule_matters_at_the_start_of_adam() -> None:
    """v is one gradient old: linear from there, scores are off by more than without a jump."""
    task = tiny.task()
    rule, _ = tiny.rule_for("adam")
    steps, state = tiny.steps(4, (0.003,)), tiny.start(task, rule)
    made = record(task, rule, state, steps, snapshots=4)
    scored = score_window(task, rule, made, tiny.targets(), scoring=Scoring(jump_bytes=MEMORY))
    made = record(task, rule, state, steps, snapshots=4)
    _, gradients = target_gradients(task.model, task.objective, tiny.targets(), made.final.theta)
    adjoint = final_adjoint(made.final, gradients)
    for k, before, grad in made.backwards():
        at = Linearization(rule, before, steps[k], grad, adjoint)
        adjoint = backward_step(task, at, Differences(), propagate=k > 0).adjoint or adjoint
    linear_from_there = exact_jump(task, at, "renormalised", MEMORY)
    without = losses_without(task, rule, state, steps, "renormalised")
    actual = without - scored.target_losses[:, None]
    linear_error, error = (
        float((change - actual).abs().mean())
        for change in (linear_from_there, scored.influences[0])
    )
    assert error < 0.5 * linear_error
