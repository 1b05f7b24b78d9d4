"""The model section."""

import pytest

from curate.recipe import Factory, Pretrained, check_recipe
from curate.recipe.models import Cnn, Mlp
from tests.recipe.base import BASE, refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.kind=rnn", "model: must have `kind: mlp`"),
        ("model.hidden=[0]", "model.hidden.0: must be greater than or equal to 1"),
        ("model.dropout=1", "model.dropout: must be less than 1"),
        ("model={pretrained: m, lora: {rank: 0}}", "model.lora.rank: must be greater than or eq"),
        (
            "model={pretrained: m, adapter: a, lora: {}}",
            "model: adapter is for trained weights as they are; remove it or lora",
        ),
        (
            "model={pretrained: m, adapter: a, from_scratch: true}",
            "model: adapter is for trained weights as they are; remove it or from_scratch",
        ),
    ],
)
def test_mistakes_are_named_by_their_key(override: str, message: str) -> None:
    assert message in refused(override)


def test_a_model_is_told_by_its_keys() -> None:
    assert check_recipe(BASE).model == Mlp()
    assert check_recipe(BASE, ["model={hidden: []}"]).model == Mlp(hidden=[])
    assert check_recipe(BASE, ["model={kind: cnn}"]).model == Cnn()
    assert check_recipe(BASE, ['model={factory: "a:b"}']).model == Factory(factory="a:b")
    text = ["model={pretrained: m}", "objective=causal_lm", "data.columns={text: t}"]
    assert check_recipe(BASE, text).model == Pretrained(pretrained="m")
