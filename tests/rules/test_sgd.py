"""SGD by hand: the momentum starts at the gradient, damped or not."""

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import SGD, State, initial_state


def test_the_first_step_is_not_damped() -> None:
    rule = SGD(momentum=0.5, dampening=0.25, weight_decay=0.5)
    state = rule.update(torch.tensor([1.0]), initial_state(rule, torch.tensor([2.0])), (0.5,))
    assert (state.theta.item(), state.slots["momentum"].item(), state.step) == (1.0, 2.0, 1)
    state = rule.update(torch.tensor([1.5]), state, (0.5,))
    assert state.slots["momentum"].item() == 0.5 * 2.0 + 0.75 * (1.5 + 0.5 * 1.0)
    assert state.theta.item() == 1.0 - 0.5 * 2.5


def test_nesterov_steps_along_gradient_and_momentum() -> None:
    state = State(torch.zeros(1), {"momentum": torch.tensor([4.0])}, 3)
    after = SGD(momentum=0.5, nesterov=True).update(torch.tensor([1.0]), state, (1.0,))
    assert after.theta.item() == -(1.0 + 0.5 * 3.0)


def test_without_momentum_there_is_no_state() -> None:
    assert SGD().init(torch.ones(3)) == {}


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_without_plain_momentum_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(OptimizerError, match="nesterov needs a momentum above 0"):
        SGD(nesterov=True, **settings)
