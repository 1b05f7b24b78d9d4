"""Leaving an example out of a step: what is left is what is meant."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from curate.influence import leave_out
from curate.trajectory import Step, Task, gradient
from tests import tiny


def gradients_by_hand(task: Task, theta: Tensor, step: Step) -> Tensor:
    """grad l_i of every candidate, by plain autograd, shape (n, P)."""
    found = []
    for row in step.rows.tolist():
        batch = task.examples.batch(torch.tensor([row]), task.model.device)
        at = theta.clone().requires_grad_()
        loss = task.objective.losses(tiny.bound(task.model, at, training=True), batch)[0]
        found.append(torch.autograd.grad(loss, at)[0])
    return torch.stack(found)


@pytest.mark.parametrize("micro", [0, 4], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize("position", [0, 3, 5])
def test_the_step_left_is_the_mean_of_the_others(removal: str, position: int, micro: int) -> None:
    task = tiny.task()
    theta, step = task.model.read(), replace(tiny.steps(1, micro=micro)[0], scale=0.7)
    ones = torch.ones(6)
    found = gradient(task, theta, leave_out(step, position, ones, removal)).mean
    others = torch.tensor([i for i in range(6) if i != position])
    w, each = step.weights, gradients_by_hand(task, theta, step)
    sums = (w[others, None] * each[others]).sum(0)
    total = w[others].sum() if removal == "renormalised" else w.sum()
    torch.testing.assert_close(found, 0.7 * sums / total, rtol=1e-11, atol=1e-15)
    if removal == "renormalised":
        kept = gradient(task, theta, step.keep(others)).mean
        torch.testing.assert_close(found, kept, rtol=1e-11, atol=1e-15)


def test_a_fixed_denominator_counts_terms_and_not_examples() -> None:
    step = tiny.steps(1)[0].reweight(torch.tensor([1.0, 2, 1, 1, 1, 1], dtype=torch.float64))
    sizes = torch.tensor([5.0, 3, 0, 1, 1, 1])
    left = leave_out(step, 1, sizes, "fixed")
    assert left.scale == pytest.approx(1 - 6 / 14, rel=1e-14)
    assert left.weights.tolist() == [1, 0, 1, 1, 1, 1]
    assert leave_out(step, 2, sizes, "fixed").scale == 1  # an example without terms
    assert leave_out(step, 1, sizes, "renormalised").scale == 1


def test_the_step_itself_is_left_alone() -> None:
    step = tiny.steps(1)[0]
    before = step.weights.clone()
    leave_out(step, 1, torch.ones(6), "fixed")
    assert torch.equal(step.weights, before)


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
def test_two_left_out_one_after_the_other_are_both_gone(removal: str) -> None:
    task, ones = tiny.task(), torch.ones(6)
    theta, step = task.model.read(), tiny.steps(1)[0]
    left = leave_out(leave_out(step, 1, ones, removal), 4, ones, removal)
    each, w = gradients_by_hand(task, theta, step), step.weights.clone()
    w[[1, 4]] = 0
    total = w.sum() if removal == "renormalised" else step.weights.sum()
    expected = (w[:, None] * each).sum(0) / total
    torch.testing.assert_close(gradient(task, theta, left).mean, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize("weight", [1.0, 0.0], ids=["only-one", "weightless"])
def test_a_step_with_nothing_left_has_gradient_0(removal: str, weight: float) -> None:
    task = tiny.task()
    step = tiny.steps(1, size=1)[0].reweight(torch.full((1,), weight, dtype=torch.float64))
    left = leave_out(step, 0, torch.ones(1), removal)
    assert gradient(task, task.model.read(), left).mean.abs().max() == 0


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
def test_dropout_falls_for_the_others_as_it_did(removal: str) -> None:
    """Their losses are those of the whole batch; in a shorter batch they would be others."""
    task = tiny.task(dropout=0.5)
    theta, step = task.model.read(), tiny.steps(1)[0]
    left = gradient(task, theta, leave_out(step, 2, torch.ones(6), removal)).losses
    assert torch.equal(left, gradient(task, theta, step).losses)
    shorter = gradient(task, theta, step.keep(torch.tensor([0, 1, 3, 4, 5]))).losses
    assert not torch.allclose(shorter[2:], left[3:])
