"""The learning rates of steps still to come, read without disturbing the scheduler."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from curate.errors import OptimizerError


def future_learning_rates(
    optimizer: torch.optim.Optimizer, scheduler: Any | None, steps: int
) -> list[tuple[float, ...]]:
    """Learning rates of every param group at each of the next `steps` steps.

    The first are the optimizer's own; the others what `scheduler`, stepped once
    per optimizer step, will set. Without a scheduler they all are the first.

    Raises:
        OptimizerError: the scheduler waits for a metric, so nobody knows; or it
            moves more than learning rates.
    """
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise OptimizerError(
            "ReduceLROnPlateau decides by a metric that is not known yet; step it yourself and "
            "give no scheduler: learning rates then stay as they are within a window."
        )
    rates = [tuple(float(group["lr"]) for group in optimizer.param_groups)]
    if scheduler is None or steps == 1:
        return rates * steps
    stand_in = _without_parameters(optimizer)
    imagined = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "step the optimizer first": nobody does here
        for _ in range(steps - 1):
            imagined.step()
            _refuse_other_changes(optimizer, stand_in)
            rates.append(tuple(float(group["lr"]) for group in stand_in.param_groups))
    return rates


def _refuse_other_changes(
    optimizer: torch.optim.Optimizer, stand_in: torch.optim.Optimizer
) -> None:
    for group, imagined in zip(optimizer.param_groups, stand_in.param_groups, strict=True):
        for name in ("momentum", "betas", "weight_decay", "alpha"):
            if name in group and imagined[name] != group[name]:
                raise OptimizerError(
                    f"the scheduler moves {name} as well as the learning rate, which is not "
                    "modelled; keep it fixed (cycle_momentum=False), or use a horizon of 1."
                )


def _without_parameters(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer with the same groups' options and nothing to train."""
    groups: list[dict[str, Any]] = [
        {
            key: value.clone() if isinstance(value, Tensor) else copy.copy(value)
            for key, value in group.items()
            if key != "params"
        }
        | {"params": [torch.zeros(0, requires_grad=True)]}
        for group in optimizer.param_groups
    ]
    return torch.optim.SGD(groups, lr=0.0)
