"""Binomial checkpointing is as cheap as dynamic programming finds."""

from functools import cache

import pytest

from curate.trajectory.checkpoints import placements, redone, split


@cache
def fewest_redone(length: int, snapshots: int) -> int:
    """Forward steps needed to reverse `length` steps, by dynamic programming."""
    if length <= 1:
        return 0
    if snapshots == 1:
        return length * (length - 1) // 2
    return min(
        m + fewest_redone(length - m, snapshots - 1) + fewest_redone(m, snapshots)
        for m in range(1, length)
    )


@pytest.mark.parametrize("snapshots", range(1, 8))
def test_steps_redone_are_the_fewest(snapshots: int) -> None:
    """The target comes after the last step: one more place to come back from."""
    for steps in range(1, 60):
        assert redone(steps, snapshots) == fewest_redone(steps + 1, snapshots) - steps


def test_split_of_one_leaves_room_on_both_sides() -> None:
    for snapshots in range(2, 8):
        for length in range(2, 60):
            assert 1 <= split(length, snapshots) <= length - 1


def test_places_are_within_the_stretch_and_the_budget() -> None:
    assert placements(3, 9, 1) == [3]
    assert placements(3, 9, 50) == [3, 4, 5, 6, 7, 8]
    for snapshots in range(1, 8):
        for length in range(1, 40):
            places = placements(5, 5 + length, snapshots)
            assert places == sorted(set(places))
            assert places[0] == 5
            assert places[-1] < 5 + length
            assert len(places) == min(snapshots, length)
