"""Influences one step ahead for less, against what they approximate, taken some other way."""

from typing import Any

import pytest
import torch
from torch import Tensor

from curate.datasets.examples import Some
from curate.errors import NonFiniteError
from curate.influence import Shortcut, Target, target_losses
from curate.influence import shortcut as shortcut_module
from curate.rules import SGD, Rule, State
from curate.trajectory import Step, Task, replay
from tests import tiny

ALL = 100.0
"""A share of the candidates that is more than any target has rows."""


def rows_gradients(task: Task, theta: Tensor, step: Step) -> Tensor:
    """grad l_i at theta, shape (n, P)."""
    batch = task.examples.batch(step.rows, task.model.device)
    with task.model.at(theta, training=True) as module:
        losses = task.objective.losses(module, batch)
        parameters = list(task.model.members().values())
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def target_gradient(task: Task, theta: Tensor, target: Target) -> Tensor:
    """By central differences along each axis, shape (P,)."""
    found = torch.zeros_like(theta)
    for k in range(len(theta)):
        far = torch.zeros_like(theta)
        far[k] = 1e-5
        up, down = (
            target_losses(task.model, task.objective, [target], theta + sign * far)
            for sign in (1, -1)
        )
        found[k] = (up - down)[0] / 2e-5
    return found


def some_steps_on(task: Task, rule: Rule, count: int = 5) -> tuple[State, Step]:
    *before, step = tiny.steps(count + 1, size=6)
    return replay(task, rule, tiny.start(task, rule), before), step.reweight(torch.ones(6))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, nearer to the derivative than single precision lets one go."""
    monkeypatch.setattr(shortcut_module, "SPAN", 1e-3)


def test_with_plain_sgd_slopes_are_those_along_the_targets_gradient_today() -> None:
    task, rule = tiny.task(), SGD()
    state, step = some_steps_on(task, rule)
    (target,) = tiny.targets()[:1]
    scores, losses = Shortcut(ALL, 1).scores(task, rule, state, step, [target], "renormalised")
    along = -step.lrs[0] * target_gradient(task, state.theta, target)
    expected = rows_gradients(task, state.theta, step) @ along
    torch.testing.assert_close(scores.derivatives[0][0], expected, rtol=1e-5, atol=1e-9)
    leaving_out = -(expected - expected.mean()) / (len(expected) - 1)
    torch.testing.assert_close(scores.influences[0][0], leaving_out, rtol=1e-4, atol=1e-8)
    with task.model.at(state.theta, training=True) as module:
        batch = task.examples.batch(step.rows, task.model.device)
        torch.testing.assert_close(
            losses, task.objective.losses(module, batch).detach(), rtol=1e-5, atol=1e-6
        )


def test_with_adamw_they_are_along_what_the_optimizer_would_make_of_it() -> None:
    task, (rule, _) = tiny.task(), tiny.rule_for("adamw")
    state, step = some_steps_on(task, rule)
    (target,) = tiny.targets()[:1]
    scores, _ = Shortcut(ALL, 1).scores(task, rule, state, step, [target], "renormalised")
    beta1, beta2 = rule.betas  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(state.theta.clone())
    real = torch.optim.AdamW(
        [parameter],
        lr=step.lrs[0],
        betas=(beta1, beta2),
        eps=rule.eps,  # type: ignore[attr-defined]
        weight_decay=rule.weight_decay,  # type: ignore[attr-defined]
    )
    names = dict(zip(sorted(state.slots), ("exp_avg", "exp_avg_sq"), strict=True))
    real.state[parameter] = {
        "step": torch.tensor(float(state.step)),
        **{theirs: state.slots[mine].clone() for mine, theirs in names.items()},
    }
    parameter.grad = torch.zeros_like(parameter)
    real.step()
    second = real.state[parameter]["exp_avg_sq"] / (1 - beta2 ** (state.step + 1))
    factor = (1 - beta1) / (1 - beta1 ** (state.step + 1))
    toward = target_gradient(task, parameter.detach(), target)
    along = -step.lrs[0] * factor * toward / (second.sqrt() + rule.eps)  # type: ignore[attr-defined]
    expected = rows_gradients(task, state.theta, step) @ along
    torch.testing.assert_close(scores.derivatives[0][0], expected, rtol=1e-4, atol=1e-7)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The rows of the first target, every time that any are asked for."""
    found: list[Tensor] = []
    real = shortcut_module.target_gradients

    def gradients(model: Any, objective: Any, targets: Any, *rest: Any, **more: Any) -> Any:
        found.append(torch.cat([*targets[0].examples.chunks(1000)]))
        return real(model, objective, targets, *rest, **more)

    monkeypatch.setattr(shortcut_module, "target_gradients", gradients)
    return found


def along_gradients(task: Task, rule: Rule, shortcut: Shortcut, count: int) -> list[Tensor]:
    """Slopes of the same step, time and again."""
    state, step = some_steps_on(task, rule)
    targets = tiny.targets()[:1]
    return [
        shortcut.scores(task, rule, state, step, targets, "fixed")[0].derivatives[0]
        for _ in range(count)
    ]


def test_all_rows_of_the_target_serve_the_steps_that_pay_for_them(asked: list[Tensor]) -> None:
    rows = len(tiny.targets()[0].examples)
    along_gradients(tiny.task(), SGD(), Shortcut(rows / 6 / 3, 8), 7)  # a third of them a step
    assert [len(part) for part in asked] == [rows] * 3  # at steps 0, 3 and 6


def test_of_too_many_rows_some_are_drawn_and_averaged(asked: list[Tensor]) -> None:
    task, rule = tiny.task(), SGD()
    state, step = some_steps_on(task, rule)
    (target,) = tiny.targets()[:1]
    found = along_gradients(task, rule, Shortcut(0.5, 2, seed=1), 5)
    assert [len(rows) for rows in asked] == [6] * 3  # half of six candidates, two steps' worth
    assert len(target.examples) > 6
    assert not torch.equal(asked[0], asked[1])
    torch.testing.assert_close(found[0], found[1])
    of_drawn = [
        rows_gradients(task, state.theta, step)
        @ (-step.lrs[0] * target_gradient(task, state.theta, _only(target, rows)))
        for rows in asked[:3]
    ]
    averaged = 0.5 * (0.5 * of_drawn[0] + 0.5 * of_drawn[1]) + 0.5 * of_drawn[2]
    torch.testing.assert_close(found[4][0], averaged, rtol=1e-4, atol=1e-8)


def _only(target: Target, rows: Tensor) -> Target:
    return Target(target.name, Some(target.examples, rows))


def test_what_is_saved_goes_on_alike() -> None:
    task, (rule, _) = tiny.task(), tiny.rule_for("adamw")
    state, step = some_steps_on(task, rule)
    targets = tiny.targets()
    one, other = Shortcut(0.3, 2), Shortcut(0.3, 2, seed=9)
    for _ in range(3):
        one.scores(task, rule, state, step, targets, "fixed")
    other.restore(one.saved(), task.model.device)
    for _ in range(4):
        here, there = (s.scores(task, rule, state, step, targets, "fixed")[0] for s in (one, other))
        assert torch.equal(here.influences[0], there.influences[0])


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    task, rule = tiny.task(), SGD()
    state, step = some_steps_on(task, rule)
    broken = state._replace(theta=state.theta * torch.inf)
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        Shortcut(ALL, 1).scores(task, rule, broken, step, tiny.targets(), "fixed")
