"""Per-example derivatives against autograd through the whole unrolled run."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from curate.influence import Differences, final_adjoint, target_gradients
from curate.influence.adjoint import BackwardStep, Linearization, backward_step
from curate.rules import Rule, State, initial_state
from curate.trajectory import Step, Task, gradient, record, replay
from tests import tiny

STEPS = 5


def unrolled(task: Task, rule: Rule, steps: list[Step]) -> list[list[Tensor]]:
    """dL/dw of every target and step by plain autograd through the run, N fixed."""
    state = tiny.start(task, rule)
    state = State(state.theta.requires_grad_(), state.slots, 0)
    all_weights = []
    for step in steps:
        weights = step.weights.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        model = tiny.bound(task.model, state.theta, training=True)
        for chunk in step.chunks():
            batch = task.examples.batch(step.rows[chunk], task.model.device)
            with task.seeded(step.seed + chunk.start):
                losses = task.objective.losses(model, batch)
            loss = loss + (weights[chunk] * losses).sum()
        loss = step.scale * loss / weights.detach().sum()
        (grad,) = torch.autograd.grad(loss, state.theta, create_graph=True)
        state = rule.update(grad, state, step.lrs)
        all_weights.append(weights)
    model = tiny.bound(task.model, state.theta, training=False)
    derivatives = []
    for target in tiny.targets():
        batch = target.examples.batch(torch.arange(len(target.examples)), task.model.device)
        final = task.objective.losses(model, batch).mean()
        derivatives.append(list(torch.autograd.grad(final, all_weights, retain_graph=True)))
    return derivatives


def derivatives(
    task: Task,
    rule: Rule,
    steps: list[Step],
    snapshots: int = 9,
    gradients: int = 0,
    *,
    remember: bool = True,
) -> list[Tensor]:
    """d_i / N of every step by our backward steps, both targets at once, shape (2, n) each.

    remember: how far to step, from one to the next; if not, all are taken both ways.
    """
    recording = record(
        task, rule, tiny.start(task, rule), steps, snapshots=snapshots, gradients=gradients
    )
    targets = tiny.targets(task.model.dtype)
    _, at_end = target_gradients(task.model, task.objective, targets, recording.final.theta)
    adjoint = final_adjoint(recording.final, at_end)
    shares, differences = [], Differences()
    for k, state, grad in recording.backwards():
        at = Linearization(rule, state, steps[k], grad, adjoint)
        differences = differences if remember else Differences()
        back = backward_step(task, at, differences, propagate=k > 0)
        shares.append(back.derivatives.double() / (steps[k].weights * grad.sizes).sum())
        adjoint = back.adjoint or adjoint
    return shares[::-1]


def assert_near(
    ours: Sequence[Tensor], theirs: Sequence[Sequence[Tensor]], most: float = 1e-7
) -> None:
    """Ours, shape (2, n) of every step, against theirs, shape (n,) of both targets' every step."""
    for q, of_steps in enumerate(theirs):
        for our, their in zip(ours, of_steps, strict=True):
            assert their.abs().max() > 0
            assert (our[q] - their).abs().max() <= most * their.abs().max()


@pytest.mark.parametrize(
    ("clip", "grouped", "dropout"),
    [(None, False, 0.0), (None, True, 0.3), (0.3, False, 0.3), (0.3, True, 0.0)],
)
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivatives_equal_unrolled_autograd(
    name: str, clip: float | None, grouped: bool, dropout: float
) -> None:
    """Every pair of clipping, groups and dropout; with gradients kept, and in micro-batches.

    Among those dropout falls otherwise.
    """
    task = tiny.task(dropout=dropout, grouped=grouped)
    rule, lrs = tiny.rule_for(name, task.model.group_shapes, clip)
    steps, in_parts = tiny.steps(STEPS, lrs), tiny.steps(STEPS, lrs, micro=4)
    expected = unrolled(task, rule, steps)
    whole = derivatives(task, rule, steps)
    assert_near(whole, expected)
    kept = derivatives(task, rule, steps, gradients=9)
    assert all(torch.equal(a, b) for a, b in zip(whole, kept, strict=True))
    parts = derivatives(task, rule, in_parts)
    assert_near(parts, unrolled(task, rule, in_parts) if dropout else expected)


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw"])
def test_derivatives_of_a_kinked_network_are_those_of_autograd(name: str) -> None:
    """Autograd goes on straight, however near a kink is; 40 steps come near many."""
    task = tiny.task(kinked=True)
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(40, lrs)
    expected = unrolled(task, rule, steps)
    assert_near(derivatives(task, rule, steps, snapshots=50), expected, most=1e-6)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivatives_of_scaled_steps_that_are_cut(name: str, clip: float | None) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for(name, clip=clip)
    steps = [
        replace(step, scale=0.4 + 0.3 * t, cuts=(2, 3) if t % 2 else ())
        for t, step in enumerate(tiny.steps(STEPS, lrs))
    ]
    again = derivatives(task, rule, steps)
    assert_near(again, unrolled(task, rule, steps))
    kept = derivatives(task, rule, steps, gradients=9)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


def test_clipping_is_active_in_the_matrix() -> None:
    task = tiny.task()
    norm = gradient(task, task.model.read(), tiny.steps(1)[0]).mean.norm()
    assert norm > 0.3


@pytest.mark.parametrize("name", ["sgd-nesterov", "adamw", "adafactor", "muon"])
def test_derivatives_equal_finite_differences(name: str) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for(name, clip=0.3)
    steps = tiny.steps(STEPS, lrs)
    start = tiny.start(task, rule)

    def loss(t: int, i: int, delta: float) -> float:
        weights = steps[t].weights.clone()
        weights[i] += delta
        changed = [*steps]
        changed[t] = steps[t].reweight(weights)
        final = replay(task, rule, start, changed)
        value, _ = target_gradients(task.model, task.objective, tiny.targets()[:1], final.theta)
        return float(value[0])

    h = 1e-5
    for t, (d, _) in enumerate(derivatives(task, rule, steps)):
        for i in (0, 3):
            slope = (loss(t, i, h) - loss(t, i, -h)) / (2 * h)
            # moving w_i also moves N: d/dw_i of the renormalised mean
            renormalised = d[i] - (steps[t].weights * d).sum() / steps[t].weights.sum()
            assert slope == pytest.approx(float(renormalised), rel=1e-5, abs=1e-9)


def test_snapshot_budget_leaves_derivatives_bit_identical() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(9, lrs)
    everything = derivatives(task, rule, steps, snapshots=9)
    for budget in (1, 2, 4):
        few = derivatives(task, rule, steps, snapshots=budget)
        assert all(torch.equal(a, b) for a, b in zip(everything, few, strict=True))


def back_from(
    task: Task,
    name: str,
    cotangents: Tensor,
    *,
    theta: Tensor | None = None,
    propagate: bool = True,
) -> BackwardStep:
    """One step back, from gradients of targets, shape (Q, P)."""
    rule, lrs = tiny.rule_for(name)
    (step,) = tiny.steps(1, lrs)
    state = initial_state(rule, task.model.read() if theta is None else theta)
    grad = gradient(task, state.theta, step)
    at = Linearization(rule, state, step, grad, final_adjoint(state, cotangents))
    return backward_step(task, at, Differences(), propagate=propagate)


def test_first_step_of_a_window_needs_no_adjoint() -> None:
    task = tiny.task()
    cotangents = torch.randn(2, task.model.size, dtype=torch.float64)
    with_it = back_from(task, "adam", cotangents)
    without = back_from(task, "adam", cotangents, propagate=False)
    assert without.adjoint is None
    assert with_it.adjoint is not None
    torch.testing.assert_close(with_it.derivatives, without.derivatives, rtol=1e-7, atol=1e-12)


def test_targets_in_one_pass_equal_targets_one_by_one() -> None:
    task = tiny.task()
    cotangents = torch.randn(3, task.model.size, dtype=torch.float64)
    together = back_from(task, "adamw", cotangents)
    assert together.adjoint is not None
    for q in range(3):
        alone = back_from(task, "adamw", cotangents[q : q + 1])
        assert alone.adjoint is not None
        torch.testing.assert_close(
            together.derivatives[q], alone.derivatives[0], rtol=1e-6, atol=1e-12
        )
        for both, one in zip(together.adjoint, alone.adjoint, strict=True):
            torch.testing.assert_close(both[q], one[0], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_dead_units_leave_every_adjoint_finite(name: str) -> None:
    """v is exactly 0 where a unit is dead; sqrt(v) has an infinite derivative there."""
    task = tiny.task()
    theta = task.model.read()
    for parameter, part in task.model.unpack(theta).items():
        if parameter.startswith("3."):
            part.zero_()  # nothing reaches the first layer
    cotangents = torch.randn(1, task.model.size, dtype=torch.float64)
    back = back_from(task, name, cotangents, theta=theta)
    assert back.adjoint is not None
    assert back.derivatives.isfinite().all()
    assert all(part.isfinite().all() for part in back.adjoint)


@pytest.mark.parametrize("kinked", [False, True], ids=["gelu", "relu"])
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "adafactor", "muon"])
def test_float32_derivatives_agree_with_float64(name: str, kinked: bool) -> None:
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(STEPS, lrs)
    wide = derivatives(tiny.task(kinked=kinked), rule, steps)
    task = tiny.task(dtype=torch.float32, kinked=kinked)
    narrow = derivatives(task, rule, steps, remember=False)
    for ours, theirs in zip(narrow, wide, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()
