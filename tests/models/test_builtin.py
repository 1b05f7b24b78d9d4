"""The built-in models: their shapes, and the data that they refuse."""

from typing import get_args

import pytest
import torch
from torch import nn

from curate.errors import ModelError
from curate.models import ACTIVATIONS, BUILTIN_MODELS
from curate.recipe import models as recipe_models


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_builtin_models_have_the_shapes_they_say(activation: str) -> None:
    options = {"activation": activation, "dropout": 0.1}
    mlp = BUILTIN_MODELS["mlp"]((2, 3), 5, hidden=(4, 4), **options)
    assert mlp(torch.randn(7, 2, 3)).shape == (7, 5)
    cnn = BUILTIN_MODELS["cnn"]((1, 9, 8), 5, channels=(2, 3), **options)
    assert cnn(torch.randn(7, 1, 9, 8)).shape == (7, 5)
    for module in (mlp, cnn):
        kinds = [type(layer) for layer in module]
        assert kinds.count(ACTIVATIONS[activation]) == 2
        assert nn.Dropout in kinds


def test_no_dropout_is_no_layer() -> None:
    for module in (BUILTIN_MODELS["mlp"]((4,), 2), BUILTIN_MODELS["cnn"]((1, 8, 8), 2)):
        assert not any(isinstance(layer, nn.Dropout) for layer in module)


def test_recipe_lists_what_models_there_are() -> None:
    assert set(get_args(recipe_models.Activation)) == set(ACTIVATIONS)


def test_cnn_refuses_flat_features_and_small_images() -> None:
    with pytest.raises(ModelError, match=r"needs images.*shape \(64,\)"):
        BUILTIN_MODELS["cnn"]((64,), 10)
    with pytest.raises(ModelError, match="3 halvings, too many for images of 8x7"):
        BUILTIN_MODELS["cnn"]((1, 8, 7), 10, channels=(2, 2, 2))
