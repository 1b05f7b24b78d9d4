"""Multipliers of the learning rate, against torch's schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from curate.rules import Schedule
from curate.rules.schedules import DECAYS

TORCH = {
    "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 16),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 16),
}


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_a_schedule_warms_up_and_then_decays_as_torchs_does(kind: str, warmup_steps: int) -> None:
    schedule = Schedule(kind, warmup_steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = TORCH[kind](optimizer)
    values = [schedule.multiplier(t, 16 + warmup_steps) for t in range(16 + warmup_steps)]
    assert values[:warmup_steps] == [t / 4 for t in range(warmup_steps)]
    for value in values[warmup_steps:]:
        assert value == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_run_that_is_all_warm_up_has_no_decay() -> None:
    assert [Schedule("linear", 4).multiplier(t, 4) for t in range(5)] == [0, 0.25, 0.5, 0.75, 1]
