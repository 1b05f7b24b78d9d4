"""What a loop can be told, by itself."""

from typing import Any

import pytest

from curate.errors import OptionError
from curate.integrations.options import AUTO, WEIGHTS, Options


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"keep": 0.5, "rounds": None}, 1),
        ({"keep": AUTO, "rounds": None}, 1),
        ({"keep": 0.5, "rounds": 3}, 3),
        ({"keep": WEIGHTS, "rounds": 2}, 2),
    ],
)
def test_rounds_are_those_asked_for_or_one(options: dict[str, Any], rounds: int) -> None:
    assert Options(**options).scored_rounds == rounds


def test_weights_take_several_rounds() -> None:
    assert Options(keep=WEIGHTS, rounds=None).scored_rounds > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.0, "tracker": object()}, "nothing to track"),
        ({"keep": 1.5}, "keep must be above 0 and at most 1"),
        ({"keep": float("nan")}, "keep must be above 0 and at most 1"),
        ({"horizon": 2.5}, "horizon must be a number of steps, at least 1, but got 2.5"),
    ],
)
def test_what_goes_beyond_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)
