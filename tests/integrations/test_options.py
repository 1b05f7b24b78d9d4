"""What a loop can be told, by itself."""

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from curate.errors import OptionError
from curate.integrations.options import AUTO, WEIGHTS, LoopOptions, Options


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
        ({"keep": WEIGHTS, "label": "y"}, "label scales values for a budget"),
    ],
)
def test_what_goes_beyond_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)


def test_every_integration_is_told_of_every_option_and_of_its_type() -> None:
    names = [field.name for field in fields(Options)]
    assert list(LoopOptions.__annotations__) == names
    assert get_type_hints(LoopOptions) == {n: get_type_hints(Options)[n] for n in names}


def test_keys_are_those_of_the_batch_and_no_functions() -> None:
    assert Options(label="y", group_by=len, row="row").keys == ["y", "row"]
    assert Options().keys == []
