"""Sign, unit and removal of an influence; windows against whole runs."""

import pytest
import torch

from curate.errors import NonFiniteError
from curate.influence import (
    influence,
    mean_metrics,
    reweighting,
    score_window,
    target_gradients,
)
from curate.rules import State
from curate.trajectory import record, replay
from tests import tiny


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
        losses, _ = target_gradients(task.model, task.objective, tiny.targets(), final.theta)
        actual = losses - scores.target_losses
        torch.testing.assert_close(scores.influences[0][:, i], actual, rtol=1e-3, atol=1e-12)


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


def test_duplicated_rows_are_two_rows() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    (step,) = tiny.steps(1, lrs)
    doubled = step.keep(torch.tensor([0, 0, 1, 2, 3]))
    recording = record(task, rule, tiny.start(task, rule), [doubled], snapshots=1)
    scores = score_window(task, rule, recording, tiny.targets()).influences[0]
    assert scores.shape == (2, 5)
    torch.testing.assert_close(scores[:, 0], scores[:, 1])


def test_target_gradient_is_the_gradient_of_the_mean_loss_in_chunks() -> None:
    task = tiny.task(dropout=0.5)  # eval mode: dropout must not show
    theta = task.model.read().requires_grad_()
    batch = tiny.examples(10, 11).batch(torch.arange(10), task.model.device)
    loss = task.objective.losses(tiny.bound(task.model, theta, training=False), batch).mean()
    (expected,) = torch.autograd.grad(loss, theta)
    for chunk in (3, 100):
        losses, gradients = target_gradients(
            task.model, task.objective, tiny.targets(), theta, chunk
        )
        torch.testing.assert_close(gradients[0], expected, rtol=1e-12, atol=1e-15)
        assert float(losses[0]) == pytest.approx(loss.item(), rel=1e-12)
    found = mean_metrics(task.model, task.objective, tiny.examples(10, 11), theta, chunk=3)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert 0 <= found["accuracy"] <= 1


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
    found = reweighting(d, sizes, torch.ones(6), half)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert reweighting(d, sizes, half, half).abs().max() == 0
