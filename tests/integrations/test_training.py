"""What is read from a loop of somebody else's: the learning rates to come."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from curate.errors import OptimizerError
from curate.integrations.training import future_learning_rates
from tests.integrations.loop import cosine, net


def test_a_scheduler_that_moves_momentum_is_refused_beyond_one_step() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    assert len(future_learning_rates(optimizer, cycle, 1)) == 1
    with pytest.raises(OptimizerError, match="moves momentum as well"):
        future_learning_rates(optimizer, cycle, 3)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": cosine,
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=0.1, total_steps=20, cycle_momentum=False
    ),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=3),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        ],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_future_learning_rates_are_those_that_come(name: str) -> None:
    model = net()
    groups = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.5}]  # type: ignore[index]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = SCHEDULERS[name](optimizer)
    for done in range(6):
        promised = future_learning_rates(optimizer, scheduler, 5)
        assert promised[0] == tuple(group["lr"] for group in optimizer.param_groups)
        optimizer.step()
        scheduler.step()
        came = tuple(group["lr"] for group in optimizer.param_groups)
        assert promised[1] == pytest.approx(came), done


def test_a_scheduler_that_waits_for_a_metric_is_refused() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(OptimizerError, match="decides by a metric"):
        future_learning_rates(optimizer, plateau, 3)
