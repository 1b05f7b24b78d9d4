"""How much effort is taken, and when more."""

import warnings

import pytest
import torch

from curate.rules import State
from curate.selection.effort import FIRST_STEPS, Pace

CHEAP = 0.5
LATER = State(torch.zeros(3), {}, FIRST_STEPS)


def test_the_first_steps_of_an_optimizer_are_exact() -> None:
    pace = Pace("fast")
    early = LATER._replace(step=FIRST_STEPS - 1)
    assert pace.shortcut(early, FIRST_STEPS - 1) is None
    assert pace.shortcut(LATER, 0) is not None
    assert pace.shortcut(early._replace(step=0), FIRST_STEPS) is not None  # SGD counts none


def test_weights_of_sixteen_bits_are_exact() -> None:
    assert Pace("fast").shortcut(LATER._replace(theta=torch.zeros(3).bfloat16()), 0) is None


def test_exact_is_never_short() -> None:
    assert Pace("exact").shortcut(LATER, 0) is None


def test_every_side_has_a_shortcut_of_its_own() -> None:
    pace = Pace("balanced", sides=2)
    assert pace.shortcut(LATER, 0, 0) is not pace.shortcut(LATER, 0, 1)


def checks(pace: Pace, alike: float, steps: int) -> list[int]:
    """The steps, of so many, in which the exact choice is made too."""
    found = []
    for k in range(steps):
        if pace.due():
            found.append(k)
            pace.enter(alike, CHEAP)
    return found


def test_it_is_checked_at_once_and_then_more_and_more_seldom() -> None:
    assert checks(Pace("balanced"), 1.0, 700) == [0, 1, 2, 7, 16, 33, 66, 131, 260, 389, 518, 647]


@pytest.mark.parametrize(("effort", "more"), [("fast", "balanced"), ("balanced", "exact")])
def test_where_too_few_rows_are_decided_alike_more_effort_is_taken(effort, more) -> None:  # type: ignore[no-untyped-def]
    pace = Pace(effort)
    with pytest.warns(RuntimeWarning, match=f"effort={effort} decided 80% .* effort is {more} "):
        assert checks(pace, 0.8, 3) == [0, 1, 2]
    assert pace.effort == more
    if more == "exact":
        assert pace.shortcut(LATER, 0) is None
    else:
        assert pace.due()  # which is checked in its turn


def test_a_few_poor_checks_do_not_decide_where_the_mean_is_uncertain() -> None:
    pace = Pace("balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for alike in (0.8, 1.0, 0.85, 0.89, 0.89, 0.89, 0.89):  # the mean is below, just
            pace.enter(alike, CHEAP)
    assert pace.effort == "balanced"
    with pytest.warns(RuntimeWarning, match="in 8 batches"):
        pace.enter(0.89, CHEAP)
    assert pace.effort == "exact"


def poor(pace: Pace) -> None:
    """Three checks of a target whose rows take nine times the step."""
    for _ in range(3):
        pace.enter(0.6, 9.0)


def test_effort_is_not_raised_to_what_takes_many_times_the_step() -> None:
    fast, balanced = Pace("fast"), Pace("balanced")
    with pytest.warns(RuntimeWarning, match="effort is balanced from here on"):
        poor(fast)
    with pytest.warns(RuntimeWarning, match="exact ones would take 9 gradients .* so it stays"):
        poor(balanced)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poor(balanced)  # which has been said
    assert balanced.effort == "balanced"


def test_where_target_rows_cost_much_checks_are_far_apart_and_the_first_steps_abstain() -> None:
    pace = Pace("balanced")
    assert pace.early(FIRST_STEPS - 1)
    assert pace.abstains(9.0, FIRST_STEPS - 1)
    assert pace.abstains(CHEAP, 0)  # another batch of the same loop
    assert not pace.early(FIRST_STEPS)  # SGD counts none
    assert not pace.abstains(9.0, FIRST_STEPS)
    assert not pace.early(0)  # in a loop that is wrapped when its optimizer has gone some way
    assert not Pace("exact").early(0)
    assert not Pace("fast").abstains(CHEAP, 0)
    found = []
    for k in range(600):
        if pace.due():
            found.append(k)
            pace.enter(1.0, 9.0)
    assert found == [0, 145, 290, 435, 580]


def test_what_is_saved_goes_on_alike() -> None:
    pace, other = Pace("balanced", sides=2), Pace("fast", sides=2)
    checks(pace, 0.95, 20)
    other.restore(pace.saved(), torch.device("cpu"))
    assert other.effort == "balanced"
    assert checks(other, 0.95, 100) == checks(pace, 0.95, 100)
