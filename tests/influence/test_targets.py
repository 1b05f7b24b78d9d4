"""Losses and gradients of targets, and metrics of examples."""

import pytest
import torch

from curate.influence import (
    Groups,
    Target,
    mean_metrics,
    over_targets,
    row_metrics,
    target_gradients,
    target_graph,
    target_losses,
)
from curate.influence.targets import CHUNK
from curate.models import Batch, Classification, FlatModel
from curate.models.objectives.base import Model
from tests import tiny
from tests.influence.layers import Attentive


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
    metrics = mean_metrics(task.model, task.objective, tiny.examples(10, 11), theta, chunk=3)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert 0 <= metrics["accuracy"] <= 1


def test_losses_of_targets_are_the_same_with_and_without_their_gradients() -> None:
    """Bit for bit, in float32, through a kernel that is another where nothing is kept."""
    float32 = torch.float32
    model = FlatModel(Attentive())
    many = Target("many", tiny.examples(CHUNK + 476, 5, float32))
    targets = [many, *tiny.targets(float32)]
    theta = model.read()
    losses, _ = target_gradients(model, Classification(), targets, theta)
    assert torch.equal(target_losses(model, Classification(), targets, theta), losses)


@pytest.mark.parametrize("worst", [0.0, 3.0, 200.0])
def test_groups_count_alike_or_the_worst_of_them_counts_most(worst: float) -> None:
    task = tiny.task()
    theta = task.model.read().requires_grad_()
    examples = tiny.examples(11, 5)
    of = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    groups = Groups(of, torch.tensor([7.0, 2.0, 2.0], dtype=torch.float64), worst)
    batch = examples.batch(torch.arange(11), task.model.device)
    losses = task.objective.losses(tiny.bound(task.model, theta, training=False), batch)
    means = torch.stack([losses[of == g].mean() for g in range(3)])
    value = means.mean()
    if worst:
        value = (means * worst).exp().mean().log() / worst
    (expected,) = torch.autograd.grad(value, theta, retain_graph=True)
    targets = [Target("grouped", examples, groups=groups)]
    for chunk in (3, 100):
        found, gradients = target_gradients(task.model, task.objective, targets, theta, chunk)
        torch.testing.assert_close(gradients[0], expected, rtol=1e-10, atol=1e-14)
        assert float(found[0]) == pytest.approx(value.item(), rel=1e-12)
    assert torch.equal(
        target_losses(task.model, task.objective, targets, theta),
        target_gradients(task.model, task.objective, targets, theta)[0],
    )
    shares = targets[0].shares(losses.detach(), torch.ones(11, dtype=torch.float64))
    assert float(shares.sum()) == pytest.approx(1.0)
    (slope,) = torch.autograd.grad(shares @ losses, theta)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)
    if worst == 200:
        assert value.item() == pytest.approx(means.max().item(), rel=0.01)


def test_a_target_may_be_about_something_else_than_training() -> None:
    task = tiny.task()
    theta, examples = task.model.read(), tiny.examples(10, 11)

    class Squared(Classification):
        def losses(self, model: Model, batch: Batch) -> torch.Tensor:
            return super().losses(model, batch) ** 2

    plain, own = (
        target_gradients(task.model, objective, [Target("t", examples, objective=about)], theta)
        for objective, about in ((Squared(), None), (task.objective, Squared()))
    )
    assert torch.equal(plain[1], own[1])
    assert torch.equal(plain[0], own[0])


def test_the_mean_over_targets_is_by_their_weights() -> None:
    examples = tiny.examples(2)
    targets = [Target("a", examples, 3.0), Target("b", examples, 1.0), Target("c", examples, 0.0)]
    values = torch.tensor([[1.0, 2.0], [5.0, -2.0], [9.0, 9.0]], dtype=torch.float64)
    assert over_targets(targets, values).tolist() == [2.0, 1.0]


def test_metrics_of_rows_are_those_of_each_alone_whatever_the_chunk() -> None:
    task = tiny.task(dropout=0.5)
    theta, examples = task.model.read(), tiny.examples(10, 11)
    metrics = row_metrics(task.model, task.objective, examples, theta, chunk=3)
    assert set(metrics) == {"loss", "size", "accuracy"}
    model = tiny.bound(task.model, theta, training=False)
    for i in range(10):
        batch = examples.batch(torch.tensor([i]), task.model.device)
        expected = task.objective.losses(model, batch)
        torch.testing.assert_close(metrics["loss"][i : i + 1], expected, rtol=1e-12, atol=0)
    assert metrics["size"].tolist() == [1.0] * 10


def test_the_graph_of_a_target_is_that_of_its_largest_part() -> None:
    task = tiny.task()
    theta = task.model.read()
    few, many = (Target(str(n), tiny.examples(n)) for n in (10, 40))

    def graph(*targets: Target) -> int:
        return target_graph(task.model, task.objective, targets, theta)

    assert graph() == 0
    assert 0 < graph(few) < graph(many) == graph(few, many)
    assert graph(many) == pytest.approx(4 * graph(few), rel=0.01)
