"""The target section of a recipe."""

from typing import Any

import pytest

import curate
from curate.errors import RecipeError


def recipe(target: dict[str, Any], **changes: Any) -> Any:
    data = {"train": "a.csv", "validation": "b.csv", "columns": {"features": ["x*"]}}
    return curate.check_recipe({"data": data, "target": target} | changes)


def test_a_function_in_it_is_code() -> None:
    assert recipe({"loss": "mine:reward"}).code() == ["target.loss mine:reward"]
    assert recipe({"loss": "margin", "balance": "label", "worst": 3}).code() == []


@pytest.mark.parametrize(
    ("target", "changes", "said"),
    [
        ({"loss": "hinge"}, {}, "target: loss must be margin, focal or package.module:name"),
        ({"worst": 2.0}, {}, "target: worst is the worst of groups; give `balance: COLUMN`"),
        ({"loss": "margin"}, {"objective": "regression"}, "target.loss: margin is for objective"),
        (
            {"balance": "label"},
            {"tune": {}},
            "tune: compares by the loss of training; leave target",
        ),
        (
            {"balance": "label"},
            {"selection": {"policy": "loss"}},
            "target: is for influences; loss does not look at any",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    target: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(target, **changes)
