"""Per-example derivatives against autograd through the whole unrolled run."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from curate.influence import Differences, backward_step, final_adjoint, target_gradients
from curate.influence.targets import Target
from curate.rules import Rule, State
from curate.trajectory import Step, Task, gradient, record, replay, seeded_rng
from tests import tiny

STEPS = 5


def unrolled(
    task: Task, rule: Rule, steps: list[Step], target: Target, *, renormalise: bool
) -> list[Tensor]:
    """dL/dw of every step by plain autograd through the run, N fixed or part of the graph."""
    state = tiny.start(task, rule)
    state = State(state.theta.requires_grad_(), state.slots, 0)
    all_weights = []
    for step in steps:
        weights = step.weights.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        for chunk in step.chunks():
            batch = task.examples.batch(step.rows[chunk], task.model.device)
            with seeded_rng(step.seed + chunk.start, task.model.device):
                losses = task.objective.losses(
                    tiny.bound(task.model, state.theta, training=True), batch
                )
            loss = loss + (weights[chunk] * losses).sum()
        loss = loss / (weights.sum() if renormalise else weights.detach().sum())
        (grad,) = torch.autograd.grad(loss * step.scale, state.theta, create_graph=True)
        state = rule.update(grad, state, step.lrs)
        all_weights.append(weights)
    batch = target.examples.batch(torch.arange(len(target.examples)), task.model.device)
    final = task.objective.losses(tiny.bound(task.model, state.theta, training=False), batch).mean()
    return list(torch.autograd.grad(final, all_weights))


def derivatives(
    task: Task, rule: Rule, steps: list[Step], snapshots: int = 9, gradients: int = 0
) -> list[Tensor]:
    """d_i / N of every step by our backward steps, both targets at once, shape (2, n) each."""
    recording = record(
        task, rule, tiny.start(task, rule), steps, snapshots=snapshots, gradients=gradients
    )
    _, gradients = target_gradients(
        task.model, task.objective, tiny.targets(), recording.final.theta
    )
    adjoint = final_adjoint(recording.final, gradients)
    found, differences = [], Differences()
    for k, state, grad in recording.backwards():
        back = backward_step(
            task, rule, state, steps[k], grad, adjoint, propagate=k > 0, differences=differences
        )
        found.append(back.derivatives / (steps[k].weights * back.sizes).sum())
        adjoint = back.adjoint or adjoint
    return found[::-1]


@pytest.mark.parametrize(
    ("micro", "gradients"), [(0, 0), (4, 0), (0, 9)], ids=["whole", "micro-batches", "kept"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize("grouped", [False, True], ids=["one-group", "two-groups"])
@pytest.mark.parametrize("clip", [None, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivatives_equal_unrolled_autograd(
    name: str, clip: float | None, grouped: bool, dropout: float, micro: int, gradients: int
) -> None:
    task = tiny.task(dropout=dropout, grouped=grouped)
    rule, lrs = tiny.rule_for(name, task.model.group_shapes, clip)
    steps = tiny.steps(STEPS, lrs, micro=micro)
    found = derivatives(task, rule, steps, gradients=gradients)
    for q, target in enumerate(tiny.targets()):
        expected = unrolled(task, rule, steps, target, renormalise=False)
        for ours, theirs in zip(found, expected, strict=True):
            assert theirs.abs().max() > 0
            assert (ours[q] - theirs).abs().max() <= 1e-7 * theirs.abs().max()


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw"])
def test_of_a_kinked_network_they_are_those_of_autograd(name: str) -> None:
    """Which goes on straight, however near a kink is; 40 steps come near many."""
    task = tiny.task(kinked=True)
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(40, lrs)
    found = derivatives(task, rule, steps, snapshots=50)
    for q, target in enumerate(tiny.targets()):
        expected = unrolled(task, rule, steps, target, renormalise=False)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours[q] - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("gradients", [0, 9])
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivatives_of_scaled_steps_that_are_cut(
    name: str, clip: float | None, gradients: int
) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for(name, clip=clip)
    steps = [
        replace(step, scale=0.4 + 0.3 * t, cuts=(2, 3) if t % 2 else ())
        for t, step in enumerate(tiny.steps(STEPS, lrs))
    ]
    found = derivatives(task, rule, steps, gradients=gradients)
    for q, target in enumerate(tiny.targets()):
        for ours, theirs in zip(
            found, unrolled(task, rule, steps, target, renormalise=False), strict=True
        ):
            assert (ours[q] - theirs).abs().max() <= 1e-7 * theirs.abs().max()


def test_clipping_is_active_in_the_matrix() -> None:
    task = tiny.task()
    from curate.trajectory import gradient

    norm = gradient(task, task.model.read(), tiny.steps(1)[0]).mean.norm()
    assert norm > 0.3


@pytest.mark.parametrize("name", ["sgd-nesterov", "adamw", "adafactor", "muon"])
def test_derivatives_equal_finite_differences(name: str) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for(name, clip=0.3)
    steps = tiny.steps(STEPS, lrs)
    found = derivatives(task, rule, steps)
    start = tiny.start(task, rule)

    def loss(t: int, i: int, delta: float) -> float:
        # fixed denominator: another example's weight makes up for the change
        weights = steps[t].weights.clone()
        weights[i] += delta
        changed = [*steps]
        changed[t] = steps[t].reweight(weights)
        final = replay(task, rule, start, changed)
        value, _ = target_gradients(task.model, task.objective, tiny.targets()[:1], final.theta)
        return float(value[0])

    h = 1e-5
    for t in range(STEPS):
        d = found[t][0]
        for i in (0, 3):
            slope = (loss(t, i, h) - loss(t, i, -h)) / (2 * h)
            # moving w_i also moves N: d/dw_i of the renormalised mean
            renormalised = d[i] - (steps[t].weights * d).sum() / steps[t].weights.sum()
            assert slope == pytest.approx(float(renormalised), rel=1e-5, abs=1e-9)


def test_snapshot_budget_leaves_derivatives_bit_identical() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(12, lrs)
    everything = derivatives(task, rule, steps, snapshots=12)
    for budget in (1, 2, 4):
        few = derivatives(task, rule, steps, snapshots=budget)
        assert all(torch.equal(a, b) for a, b in zip(everything, few, strict=True))


def test_first_step_of_a_window_needs_no_adjoint() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adam")
    (step,) = tiny.steps(1, lrs)
    state = tiny.start(task, rule)
    adjoint = final_adjoint(state, torch.randn(2, task.model.size, dtype=torch.float64))
    grad = gradient(task, state.theta, step)
    with_it = backward_step(task, rule, state, step, grad, adjoint)
    without = backward_step(task, rule, state, step, grad, adjoint, propagate=False)
    assert without.adjoint is None
    assert with_it.adjoint is not None
    torch.testing.assert_close(with_it.derivatives, without.derivatives, rtol=1e-7, atol=1e-12)


def test_targets_in_one_pass_equal_targets_one_by_one() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    (step,) = tiny.steps(1, lrs)
    state = tiny.start(task, rule)
    cotangents = torch.randn(3, task.model.size, dtype=torch.float64)
    grad = gradient(task, state.theta, step)
    together = backward_step(task, rule, state, step, grad, final_adjoint(state, cotangents))
    for q in range(3):
        alone = backward_step(
            task, rule, state, step, grad, final_adjoint(state, cotangents[q : q + 1])
        )
        torch.testing.assert_close(
            together.derivatives[q], alone.derivatives[0], rtol=1e-6, atol=1e-12
        )
        assert together.adjoint is not None
        assert alone.adjoint is not None
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
    rule, lrs = tiny.rule_for(name)
    (step,) = tiny.steps(1, lrs)
    state = State(theta, rule.init(theta), 0)
    gradients = torch.randn(1, task.model.size, dtype=torch.float64)
    grad = gradient(task, state.theta, step)
    back = backward_step(task, rule, state, step, grad, final_adjoint(state, gradients))
    assert back.adjoint is not None
    assert back.derivatives.isfinite().all()
    assert all(part.isfinite().all() for part in back.adjoint)


@pytest.mark.parametrize("kinked", [False, True], ids=["gelu", "relu"])
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "adafactor", "muon"])
def test_float32_derivatives_agree_with_float64(name: str, kinked: bool) -> None:
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(STEPS, lrs)
    wide = derivatives(tiny.task(kinked=kinked), rule, steps)
    recording32 = tiny.task(dtype=torch.float32, kinked=kinked)
    state = tiny.start(recording32, rule)
    recording = record(recording32, rule, state, steps, snapshots=9)
    _, gradients = target_gradients(
        recording32.model, recording32.objective, tiny.targets(torch.float32), recording.final.theta
    )
    adjoint = final_adjoint(recording.final, gradients)
    for k, before, grad in recording.backwards():
        back = backward_step(recording32, rule, before, steps[k], grad, adjoint)
        narrow = back.derivatives.double() / steps[k].weights.sum()
        assert (narrow - wide[k]).abs().max() <= 1e-3 * wide[k].abs().max()
        assert back.adjoint is not None
        adjoint = back.adjoint
