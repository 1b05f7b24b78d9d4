"""Every key is described, and what is made of the descriptions is not stale."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from curate.errors import RecipeError
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.recipe.reference import described, page, schema, sections
from curate.recipe.schema import Recipe
from curate.recipe.section import Section

VALIDATOR = Draft202012Validator(schema())
RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted([*RECIPES.glob("*.yaml"), *RECIPES.parent.glob("examples/**/*.yaml")])
SHORTEST = {"data": {"train": "a.csv", "columns": {"features": "x"}, "validation": "b.csv"}}


@pytest.mark.parametrize("section", sections(Section)[1:], ids=lambda section: section.__name__)
def test_every_key_has_a_description(section: type[Section]) -> None:
    missing = [name for name in section.model_fields if not described(section).get(name)]
    assert not missing


def test_the_page_and_the_schema_are_those_of_the_code() -> None:
    how = "run: python -m curate.recipe.reference recipes"
    assert (RECIPES / "README.md").read_text(encoding="utf-8") == page(), how
    assert json.loads((RECIPES / "schema.json").read_text(encoding="utf-8")) == schema(), how


def test_the_page_has_every_key_of_the_schema() -> None:
    parts = Recipe.model_json_schema()["$defs"].values()
    shown = page()
    assert not [key for part in parts for key in part["properties"] if f"| `{key}` |" not in shown]


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_of_ours_is_one_by_the_schema(path: Path) -> None:
    VALIDATOR.validate(parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("section", "right"),
    [
        ({}, True),
        ({"selection": {"keep": "auto"}}, True),
        ({"selection": {"keep": {"fraction": 0.5}}}, True),
        ({"selection": {"keep": "half"}}, False),
        ({"selection": {"keep": 0.5}}, True),
        ({"selection": {"keep": 500}}, False),
        ({"selection": {"keep": {"fraction": 1.5}}}, False),
        ({"selection": {"horizn": 4}}, False),
        ({"training": {"optimizer": {"lr": 0.1}}}, True),
        ({"training": {"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}}, True),
        ({"training": {"optimizer": {"kind": "lion", "lr": 0.1}}}, False),
        ({"training": {"optimizer": {"groups": [{"match": ["b"], "lr": 0.1}]}}}, True),
        ({"training": {"epochs": 0}}, False),
        ({"model": {"kind": "mlp"}}, True),
        ({"model": {"kind": "rnn"}}, False),
    ],
)
def test_the_schema_and_the_program_agree(section: dict[str, Any], right: bool) -> None:
    recipe = SHORTEST | section
    assert VALIDATOR.is_valid(recipe) == right
    if right:
        check_recipe(recipe)
    else:
        with pytest.raises(RecipeError, match=next(iter(section))):
            check_recipe(recipe)
