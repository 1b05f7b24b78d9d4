"""Recipes by name: those that come with curate, from a clone and from a wheel."""

import tomllib
from pathlib import Path, PurePosixPath

import pytest

from curate.errors import RecipeError
from curate.recipe import built_in, load_recipe
from tests.house import PROJECT

SHIPPED = {"digits", "dpo_lora", "gpt2_wikitext", "llama_lora", "mnist_cnn", "mnist_mlp"}
CUT = "data: {train: mine.csv, columns: {features: [x], label: y}, validation: {fraction: 0.5}}"


def test_a_bare_name_is_a_recipe_anywhere(here: Path) -> None:
    assert built_in.built_in().keys() == SHIPPED
    assert load_recipe("digits") == load_recipe(PROJECT / "recipes" / "digits.yaml")
    assert load_recipe("digits", ["training.epochs=3"]).training.epochs == 3


def test_what_lies_in_the_working_directory_wins(here: Path) -> None:
    Path("digits").write_text(CUT)
    assert load_recipe("digits").data.train.path == "mine.csv"


def test_an_unknown_name_lists_those_that_there_are(here: Path) -> None:
    listed = r"digit: cannot read the recipe: No such file.*; built-in ones are digits, dpo_lora"
    with pytest.raises(RecipeError, match=listed):
        load_recipe("digit")
    with pytest.raises(RecipeError, match=r"digits.yaml: cannot read the recipe: .* directory\.$"):
        load_recipe("digits.yaml")  # a file is meant


class Shipped(PurePosixPath):
    """A line of a wheel's list of files, as `importlib.metadata` has it."""

    def locate(self) -> Path:
        return PROJECT / "recipes" / self.name


def test_a_wheel_has_them_among_its_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["data-files"]
    files = [
        Shipped("../../..", folder, path.name)
        for folder, (pattern,) in data.items()
        for path in PROJECT.glob(pattern)
    ]
    monkeypatch.setattr(built_in, "HERE", tmp_path)
    monkeypatch.setattr(
        built_in.metadata, "files", lambda _: [*files, Shipped("curate/output/x.yaml")]
    )
    assert built_in.built_in() == {
        name: PROJECT / "recipes" / f"{name}.yaml" for name in sorted(SHIPPED)
    }
