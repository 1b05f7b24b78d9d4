"""One step: its chunks, its gradient against autograd's, and the caller's RNG."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from curate.models import Classification
from curate.trajectory import Step, Task, forward_step, gradient, nonzero
from tests import tiny


def by_autograd(task: Task, step: Step, scale: float = 1.0) -> torch.Tensor:
    """The gradient of the weighted mean over the whole batch, without dropout."""
    theta = task.model.read().requires_grad_()
    batch = task.examples.batch(step.rows, task.model.device)
    logits = tiny.bound(task.model, theta, training=True)(batch["features"])
    losses = cross_entropy(logits, batch["label"], reduction="none")
    mean = scale * (step.weights * losses).sum() / step.weights.sum()
    return torch.autograd.grad(mean, theta)[0]


@pytest.mark.parametrize(("micro", "cuts"), [(0, ()), (4, ()), (0, (1, 4)), (2, (3,))])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_gradient_is_that_of_the_weighted_mean(
    micro: int, cuts: tuple[int, ...], scale: float
) -> None:
    task = tiny.task(grouped=True)
    step = replace(tiny.steps(1, micro=micro)[0], cuts=cuts, scale=scale)
    ours = gradient(task, task.model.read(), step)
    torch.testing.assert_close(ours.mean, by_autograd(task, step, scale), rtol=1e-12, atol=1e-15)
    assert ours.losses.shape == ours.sizes.shape == (6,)
    whole = gradient(task, task.model.read(), tiny.steps(1)[0])
    torch.testing.assert_close(ours.losses, whole.losses)


def test_a_step_that_weighs_nothing_has_no_gradient() -> None:
    task = tiny.task()
    step = tiny.steps(1)[0].reweight(torch.zeros(6, dtype=torch.float64))
    assert gradient(task, task.model.read(), step).mean.tolist() == [0] * task.model.size
    assert nonzero(torch.tensor([0.0, 2.0])).tolist() == [1, 2]


def test_a_gradient_at_hand_is_the_one_that_is_stepped_with() -> None:
    task = tiny.task(dropout=0.5)
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    grad = gradient(task, state.theta, step)
    ours, losses = forward_step(task, rule, state, step, grad)
    theirs, again = forward_step(task, rule, state, step)
    assert torch.equal(ours.theta, theirs.theta)
    assert torch.equal(losses, again)
    other, _ = forward_step(task, rule, state, step, grad._replace(mean=-grad.mean))
    assert not torch.equal(ours.theta, other.theta)


def test_no_forward_pass_crosses_a_cut() -> None:
    step = replace(tiny.steps(1, size=10)[0], cuts=(3, 7))
    assert [(c.start, c.stop) for c in step.chunks()] == [(0, 3), (3, 7), (7, 10)]
    small = replace(step, micro_batch=2)
    assert [c.stop - c.start for c in small.chunks()] == [2, 1, 2, 2, 2, 1]
    kept = small.keep(torch.tensor([0, 4, 5, 8, 9]))
    assert kept.cuts == (1, 3)
    assert torch.equal(kept.rows, step.rows[[0, 4, 5, 8, 9]])
    assert torch.equal(kept.weights, step.weights[[0, 4, 5, 8, 9]])
    assert step.keep(torch.tensor([8, 9])).cuts == ()


class Shaken(Classification):
    """A loss with noise from everywhere that noise may come from."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(3)
        self.draws: list[float] = []

    def losses(self, model: Any, batch: Any) -> torch.Tensor:
        self.draws = [
            float(torch.rand(())),
            float(torch.rand((), generator=self.own)),
            random.random(),
            float(np.random.rand()),  # noqa: NPY002
        ]
        return super().losses(model, batch) * (1 + sum(self.draws))


def test_the_seed_makes_all_random_numbers_and_the_callers_go_on() -> None:
    def states() -> list[Any]:
        own = shaken.own.get_state().tolist()
        legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), own, random.getstate(), legacy]

    shaken = Shaken()
    task, step = replace(tiny.task(), objective=shaken), tiny.steps(1)[0]
    before = states()
    drawn = []
    for seed in (step.seed, step.seed, step.seed + 1):
        gradient(task, task.model.read(), replace(step, seed=seed))
        drawn.append(shaken.draws)
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[1], drawn[2], strict=True))
    assert drawn[0][0] == float(torch.rand((), generator=torch.Generator().manual_seed(step.seed)))
    assert states() == before
    with pytest.raises(ZeroDivisionError), task.seeded(7):
        raise ZeroDivisionError
    assert states() == before
