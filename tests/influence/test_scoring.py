"""Scoring as if the optimizer had been another: the paper's main error, on purpose."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from curate.influence import Scoring, Target, score_window
from curate.rules import SGD, Adam, Clipped, Grouped, Rule, as_sgd
from curate.trajectory import Step, Task, record, replay
from tests import tiny


def sgd_by_hand(
    task: Task, thetas: list[Tensor], steps: list[Step], target: Target
) -> list[Tensor]:
    """-grad l_i . a_g with theta' = theta - lr g, along a run that was trained otherwise."""

    def losses(theta: Tensor, batch: Any) -> Tensor:
        z = functional_call(task.model.module, task.model.unpack(theta), batch["features"])
        return F.cross_entropy(z, batch["label"], reduction="none")

    at_end = target.examples.batch(torch.arange(len(target.examples)), task.model.device)
    adjoint = grad(lambda theta: losses(theta, at_end).mean())(thetas[-1])
    found = []
    for theta, step in list(zip(thetas, steps, strict=False))[::-1]:
        batch = task.examples.batch(step.rows, task.model.device)
        each = jacrev(lambda theta, batch=batch: losses(theta, batch))(theta)
        found.append(-step.lrs[0] * each @ adjoint)

        def mean(theta: Tensor, batch: Any = batch, w: Tensor = step.weights) -> Tensor:
            return (w * losses(theta, batch)).sum() / w.sum()

        bent = jacrev(grad(mean))(theta) @ adjoint
        adjoint = adjoint - step.lrs[0] * bent
    return found[::-1]


@pytest.mark.parametrize("name", ["adamw", "sgd-nesterov"])
def test_a_mistaken_rule_scores_the_run_as_it_was_by_sgd_without_its_state(name: str) -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(5, lrs)
    start = tiny.start(task, rule)
    thetas = [replay(task, rule, start, steps[:k]).theta for k in range(6)]
    found = score_window(
        task, rule, record(task, rule, start, steps, snapshots=2), tiny.targets(),
        scoring=Scoring(mistaken_rule=as_sgd(rule)),
    )  # fmt: skip
    for q, target in enumerate(tiny.targets()):
        for k, expected in enumerate(sgd_by_hand(task, thetas, steps, target)):
            scale = expected.abs().max()
            assert scale > 0
            assert (found.derivatives[k][q] - expected).abs().max() <= 1e-7 * scale


def test_a_run_of_sgd_is_not_mistaken_for_another() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("sgd", clip=0.3)
    steps, found = tiny.steps(4, lrs), []
    for mistaken in (None, as_sgd(rule)):
        made = record(task, rule, tiny.start(task, rule), steps, snapshots=4)
        scoring = Scoring(mistaken_rule=mistaken)
        found.append(
            torch.stack(score_window(task, rule, made, tiny.targets(), scoring=scoring).influences)
        )
    assert torch.equal(found[0], found[1])


def test_as_sgd_keeps_clipping_and_groups_and_nothing_else() -> None:
    rule: Rule = Clipped(Grouped((Adam(), SGD(momentum=0.9, weight_decay=0.1)), (3, 2)), 0.5)
    assert as_sgd(rule) == Clipped(Grouped((SGD(), SGD()), (3, 2)), 0.5)
