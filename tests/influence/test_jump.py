"""The exact jump against the step really done without the example."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.errors import ModelError
from curate.influence import (
    Scoring,
    backward_step,
    exact_jump,
    final_adjoint,
    influence,
    leave_out,
    score_window,
    target_gradients,
)
from curate.models import FlatModel
from curate.rules import Adjoint, Rule, State
from curate.trajectory import Step, Task, forward_step, gradient, record, replay
from tests import tiny


def adjoint_of(state: State) -> Adjoint:
    """Any adjoint will do: the jump is an inner product with it."""
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(2, t.numel(), generator=generator, dtype=torch.float64) for t in state.tensors()
    )


def by_hand(
    task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, removal: str
) -> Tensor:
    """Each example left out of the step in turn, by our forward step."""
    after, _ = forward_step(task, rule, state, step)
    batch = task.examples.batch(step.rows, task.model.device)
    terms = step.weights * task.objective.sizes(batch)
    found = []
    for i in range(len(step.rows)):
        weights = step.weights.clone()
        weights[i] = 0
        scale = step.scale if removal == "renormalised" else (
            step.scale * float(1 - terms[i] / terms.sum())
        )  # fmt: skip
        without, _ = forward_step(task, rule, state, replace(step, weights=weights, scale=scale))
        moved = zip(without.tensors(), after.tensors(), adjoint, strict=True)
        found.append(sum(((m - a) * cotangent).sum(1) for m, a, cotangent in moved))
    return torch.stack(found, dim=1)  # type: ignore[arg-type]


def jump(
    task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, removal: str,
    memory: int = 2**20,
) -> Tensor:  # fmt: skip
    grad = gradient(task, state.theta, step)
    back = backward_step(task, rule, state, step, grad, adjoint)
    _, losses = forward_step(task, rule, state, step)
    return exact_jump(
        task, rule, state, step, adjoint, mean=back.mean, losses=losses, sizes=back.sizes,
        removal=removal, memory=memory,
    )  # fmt: skip


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize(
    ("micro", "cuts"), [(0, ()), (4, ()), (0, (1, 4))], ids=["whole", "micro-batches", "cut"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize("grouped", [False, True], ids=["one-group", "two-groups"])
@pytest.mark.parametrize("clip", [None, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", tiny.RULES)
def test_the_jump_is_the_step_without_the_example(
    name: str, clip: float | None, grouped: bool, dropout: float, micro: int,
    cuts: tuple[int, ...], removal: str,
) -> None:  # fmt: skip
    task = tiny.task(dropout=dropout, grouped=grouped)
    rule, lrs = tiny.rule_for(name, task.model.group_shapes, clip)
    steps = tiny.steps(3, lrs, micro=micro)
    state = replay(task, rule, tiny.start(task, rule), steps[:2])
    step = replace(steps[2], cuts=cuts, scale=0.7)
    adjoint = adjoint_of(state)
    found = jump(task, rule, state, step, adjoint, removal)
    expected = by_hand(task, rule, state, step, adjoint, removal)
    assert expected.abs().max() > 1e-6
    assert (found - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_memory_changes_nothing_but_the_pieces() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    adjoint = adjoint_of(state)
    whole, pieces = (
        jump(task, rule, state, step, adjoint, "renormalised", memory) for memory in (2**20, 1)
    )
    assert torch.allclose(whole, pieces, rtol=1e-7)


def test_for_a_small_weight_the_jump_is_linear() -> None:
    """The error of the derivative is of second order in what is removed."""
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    state = replay(task, rule, tiny.start(task, rule), tiny.steps(2, lrs))
    adjoint = adjoint_of(state)
    errors = []
    for weight in (1e-2, 1e-3):
        step = tiny.steps(3, lrs)[2]
        weights = step.weights.clone()
        weights[1] = weight
        step = step.reweight(weights)
        grad = gradient(task, state.theta, step)
        back = backward_step(task, rule, state, step, grad, adjoint)
        linear = influence(back.derivatives, step.weights, back.sizes, "renormalised")[:, 1]
        exact = jump(task, rule, state, step, adjoint, "renormalised")[:, 1]
        errors.append(float(((exact - linear) / linear).abs().max()))
    assert errors[1] < 0.15 * errors[0]


def test_a_step_of_one_loses_its_whole_gradient() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adam")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs, size=1)[0]
    adjoint = adjoint_of(state)
    for removal in ("renormalised", "fixed"):
        found = jump(task, rule, state, step, adjoint, removal)
        expected = by_hand(task, rule, state, step, adjoint, removal)
        assert torch.allclose(found, expected, rtol=1e-7)


def test_dropout_that_would_fall_otherwise_is_refused() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adam")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    with pytest.raises(ModelError, match=r"the batch had .* more memory"):
        jump(task, rule, state, step, adjoint_of(state), "renormalised", memory=1)


def test_scores_in_float32_are_those_of_float64() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        task = tiny.task(dtype=dtype)
        rule, lrs = tiny.rule_for("adamw")
        steps = [step.reweight(step.weights.to(dtype)) for step in tiny.steps(4, lrs)]
        made = record(task, rule, tiny.start(task, rule), steps, snapshots=4)
        scored = score_window(
            task, rule, made, tiny.targets(dtype), scoring=Scoring(jump_bytes=2**20)
        )
        found.append(torch.stack(scored.influences))
    scale = found[1].abs().max()
    assert (found[0].double() - found[1]).abs().max() < 1e-3 * scale


class Height:
    """A loss linear in the parameters of a linear model: gradients that never change."""

    def losses(self, model: Any, batch: Any) -> Tensor:
        return (model(batch["features"]) * batch["label"][:, None]).sum(dim=1)

    def sizes(self, batch: Any) -> Tensor:
        return torch.ones(len(batch["label"]))

    def metrics(self, _model: Any, _batch: Any) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize("name", ["adam-l2", "adamw", "rmsprop-centered", "sgd-nesterov"])
def test_where_gradients_never_change_two_steps_are_exact(name: str, removal: str) -> None:
    """Without curvature nothing is linear any more, the rule of the next step included."""
    task = replace(tiny.task(), objective=Height())
    task = replace(task, model=FlatModel(nn.Linear(4, 3), dtype=torch.float64))
    rule, lrs = tiny.rule_for(name)
    steps, state = tiny.steps(2, lrs), tiny.start(task, rule)
    made = record(task, rule, state, steps, snapshots=2)
    scored = score_window(
        task, rule, made, tiny.targets(), scoring=Scoring(removal=removal, jump_bytes=2**20)
    )
    for i in range(len(steps[0].rows)):
        without = leave_out(steps[0], i, torch.ones(6), removal)
        final = replay(task, rule, state, [without, steps[1]])
        found, _ = target_gradients(task.model, task.objective, tiny.targets(), final.theta)
        actual = found - scored.target_losses
        assert torch.allclose(scored.influences[0][:, i], actual, rtol=1e-7, atol=1e-12)


def test_the_next_step_of_the_rule_matters_at_the_start_of_adam() -> None:
    """v is one gradient old: linear from there, scores are off by more than without a jump."""
    task = tiny.task()
    rule, _ = tiny.rule_for("adam")
    steps, state = tiny.steps(4, (0.003,)), tiny.start(task, rule)
    made = record(task, rule, state, steps, snapshots=4)
    scored = score_window(task, rule, made, tiny.targets(), scoring=Scoring(jump_bytes=2**20))
    back_to = record(task, rule, state, steps, snapshots=4)
    _, gradients = target_gradients(task.model, task.objective, tiny.targets(), back_to.final.theta)
    adjoint = final_adjoint(back_to.final, gradients)
    for k, at, grad in back_to.backwards():
        if k == 0:
            break
        back = backward_step(task, rule, at, steps[k], grad, adjoint)
        assert back.adjoint is not None
        adjoint = back.adjoint
    linear_from_there = jump(task, rule, state, steps[0], adjoint, "renormalised")
    errors = []
    for found in (linear_from_there, scored.influences[0]):
        actual = torch.stack(
            [
                target_gradients(
                    task.model, task.objective, tiny.targets(),
                    replay(
                        task, rule, state,
                        [leave_out(steps[0], i, torch.ones(6), "renormalised"), *steps[1:]],
                    ).theta,
                )[0] - scored.target_losses
                for i in range(6)
            ],
            dim=1,
        )  # fmt: skip
        errors.append(float((found - actual).abs().mean()))
    assert errors[1] < 0.5 * errors[0]
