"""Leaving an example out of a step: what is left, and what it is predicted to do."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from curate.influence import Scoring, influence, leave_out, reweighting
from curate.trajectory import Step, Task, gradient
from tests import tiny


def gradients_by_hand(task: Task, theta: Tensor, step: Step) -> Tensor:
    """grad l_i of every candidate, by plain autograd, shape (n, P)."""
    gradients = []
    for row in step.rows.tolist():
        batch = task.examples.batch(torch.tensor([row]), task.model.device)
        at = theta.clone().requires_grad_()
        loss = task.objective.losses(tiny.bound(task.model, at, training=True), batch)[0]
        gradients.append(torch.autograd.grad(loss, at)[0])
    return torch.stack(gradients)


@pytest.mark.parametrize("micro", [0, 4], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize("position", [0, 3, 5])
def test_the_step_left_is_the_mean_of_the_others(removal: str, position: int, micro: int) -> None:
    task = tiny.task()
    theta, step = task.model.read(), replace(tiny.steps(1, micro=micro)[0], scale=0.7)
    ones = torch.ones(6)
    left = gradient(task, theta, leave_out(step, position, ones, removal)).mean
    others = torch.tensor([i for i in range(6) if i != position])
    w, gradients = step.weights, gradients_by_hand(task, theta, step)
    sums = (w[others, None] * gradients[others]).sum(0)
    total = w[others].sum() if removal == "renormalised" else w.sum()
    torch.testing.assert_close(left, 0.7 * sums / total, rtol=1e-11, atol=1e-15)
    if removal == "renormalised":
        kept = gradient(task, theta, step.keep(others)).mean
        torch.testing.assert_close(left, kept, rtol=1e-11, atol=1e-15)


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
    gradients, w = gradients_by_hand(task, theta, step), step.weights.clone()
    w[[1, 4]] = 0
    total = w.sum() if removal == "renormalised" else step.weights.sum()
    expected = (w[:, None] * gradients).sum(0) / total
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


def test_fixed_removal_keeps_the_denominator() -> None:
    d = torch.tensor([[1.0, 2.0, 6.0]])
    ones = torch.ones(3)
    torch.testing.assert_close(influence(d, ones, ones, "fixed"), -d.double() / 3)
    torch.testing.assert_close(influence(d, ones, ones, "renormalised"), -(d.double() - 3) / 2)


def test_renormalised_removal_sums_to_zero_over_equal_weights() -> None:
    d = torch.randn(2, 7)
    total = influence(d, torch.ones(7), torch.ones(7), "renormalised").sum(dim=1)
    assert total.abs().max() < 1e-12


def test_token_counts_weigh_the_mean() -> None:
    """An example of n tokens that is exactly average has no influence."""
    sizes = torch.tensor([1.0, 3.0, 2.0])
    d = 5.0 * sizes[None]
    assert influence(d, torch.ones(3), sizes, "renormalised").abs().max() < 1e-12


def test_batch_of_one_has_the_influence_of_no_gradient() -> None:
    d, one = torch.tensor([[3.0]]), torch.ones(1)
    assert influence(d, one, one, "renormalised").item() == -3.0


def test_weightless_step_has_no_influence() -> None:
    d, zero = torch.tensor([[3.0, 1.0]]), torch.zeros(2)
    for removal in ("fixed", "renormalised"):
        assert influence(d, zero, torch.ones(2), removal).abs().max() == 0


def test_unknown_removal_is_refused() -> None:
    with pytest.raises(ValueError, match="removal must be one of"):
        influence(torch.ones(1, 1), torch.ones(1), torch.ones(1), "loo")
    with pytest.raises(ValueError, match="removal must be one of"):
        Scoring(removal="loo")


def test_reweighting_is_renormalised_removal_for_one_and_exact_in_the_gradient_for_many() -> None:
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 9, (6,), generator=generator).double()
    weights = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    without = weights.clone()
    without[2] = 0
    one = influence(d, weights, sizes, "renormalised")[:, 2]
    assert torch.allclose(reweighting(d, sizes, weights, without), one, rtol=1e-12)
    half = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64)
    expected = (d * half).sum(1) / (sizes * half).sum() - d.sum(1) / sizes.sum()
    change = reweighting(d, sizes, torch.ones(6), half)
    assert torch.allclose(change, expected, rtol=1e-12)
    assert reweighting(d, sizes, half, half).abs().max() == 0
