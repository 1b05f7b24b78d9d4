"""The shortest recipe, and what is said of one with a mistake."""

from typing import Any

import pytest

from curate.errors import RecipeError
from curate.recipe import check_recipe

BASE: dict[str, Any] = {
    "data": {
        "train": "sklearn:digits",
        "columns": {"features": ["features"]},
        "validation": {"fraction": 0.2},
    }
}


def refused(*overrides: str) -> str:
    """The message about the recipe with these overrides, which are wrong."""
    with pytest.raises(RecipeError) as error:
        check_recipe(BASE, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)
