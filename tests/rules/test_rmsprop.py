"""RMSprop by hand, and the slots of its variants."""

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import RMSprop, initial_state


def test_one_step_by_hand() -> None:
    rule = RMSprop(alpha=0.75, eps=1.0, weight_decay=0.5)
    after = rule.update(torch.tensor([2.0]), initial_state(rule, torch.tensor([4.0])), (0.3,))
    assert after.slots["v"].item() == 0.25 * 4.0**2
    assert after.theta.item() == pytest.approx(4.0 - 0.3 * 4.0 / (2.0 + 1.0))


def test_centered_divides_by_the_deviation() -> None:
    rule = RMSprop(alpha=0.5, eps=1.0, centered=True, momentum=0.5)
    state = initial_state(rule, torch.tensor([0.0]))
    state = rule.update(torch.tensor([2.0]), state, (1.0,))
    assert state.theta.item() == -2.0 / (1.0 + 1.0)  # v - a^2 = 2 - 1
    assert state.slots == {"v": 2.0, "average": 1.0, "momentum": 1.0}


@pytest.mark.parametrize(
    ("rule", "slots"),
    [
        (RMSprop(), {"v"}),
        (RMSprop(centered=True), {"v", "average"}),
        (RMSprop(momentum=0.5), {"v", "momentum"}),
    ],
)
def test_slots_are_only_those_that_are_used(rule: RMSprop, slots: set[str]) -> None:
    assert rule.init(torch.ones(2)).keys() == slots
    assert (
        rule.update(torch.ones(2), initial_state(rule, torch.ones(2)), (1.0,)).slots.keys() == slots
    )


def test_eps_zero_is_refused() -> None:
    with pytest.raises(OptimizerError, match="eps must be above 0 but got 0"):
        RMSprop(eps=0.0)
