"""Adagrad by hand."""

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import Adagrad, initial_state


def test_two_steps_by_hand() -> None:
    rule = Adagrad(lr_decay=0.5, initial_accumulator_value=7.0, eps=1.0)
    state = rule.update(torch.tensor([3.0]), initial_state(rule, torch.tensor([0.0])), (2.0,))
    assert state.slots["sum"].item() == 7.0 + 9.0
    assert state.theta.item() == pytest.approx(-2.0 * 3.0 / (4.0 + 1.0))
    state = rule.update(torch.tensor([3.0]), state, (2.0,))
    assert state.theta.item() == pytest.approx(-1.2 - 2.0 / 1.5 * 3.0 / (5.0 + 1.0))


def test_eps_zero_is_refused() -> None:
    with pytest.raises(OptimizerError, match="eps must be above 0 but got 0"):
        Adagrad(eps=0.0)
