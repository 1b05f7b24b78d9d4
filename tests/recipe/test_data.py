"""The data section."""

from typing import Any

import pytest

from curate.recipe import Source, check_recipe
from curate.recipe.data import Columns
from tests.recipe.base import BASE, refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.validation.fraction=1.5", "data.validation.fraction: must be less than 1"),
        ("data.validation={a: {pth: x}}", "data.validation.a.pth: unknown key"),
        ("data.columns.features=[]", "data.columns.features: must have at least 1 item"),
        ("data.label_noise.fraction=2", "data.label_noise.fraction: must be less than 1"),
        ("data.columns={prompt: p}", "belong together, but there is no completion"),
        ("data.columns={prompt: p, chosen: c}", "belong together, but there is no rejected"),
        (
            "data.columns={prompt: p, completion: q, chosen: c, rejected: r}",
            "give completion, or chosen and rejected, but not both",
        ),
        ("data.columns={text: t, features: [x]}", "data.columns: give exactly one of features"),
        ("data.columns={}", "messages, but got none"),
        ("data.columns={text: t, image_shape: [2, 2]}", "image_shape is for features; remove it"),
        ("data.max_length=3", "data: max_length is for text; remove it"),
        ("data.test={a: {path: x}}", "data.test.a: unknown key; remove it (and 1 more)"),
    ],
)
def test_mistakes_are_named_by_their_key(override: str, message: str) -> None:
    assert message in refused(override)


def test_short_forms_mean_what_they_are_short_for() -> None:
    data = check_recipe(BASE, ["data.columns.features=x", "data.validation={a: b.csv}"]).data
    assert data.columns.features == ["x"]
    assert data.validation == {"a": Source(path="b.csv")}
    assert str(Source(path="hub/data", split="train", name="small")) == "hub/data small train"


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ({"features": ["x"]}, "features"),
        ({"text": "t"}, "text"),
        ({"prompt": "p", "completion": "c"}, "prompt"),
        ({"messages": "m"}, "messages"),
    ],
)
def test_the_form_of_examples_is_known(columns: dict[str, Any], form: str) -> None:
    assert Columns.model_validate(columns).form == form
