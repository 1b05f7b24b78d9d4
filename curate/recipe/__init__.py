"""The recipe: a YAML file that says all of it. Loads no torch."""

from curate.recipe.data import Source, Split
from curate.recipe.load import check_recipe, fingerprint, load_recipe, resolved, write_recipe
from curate.recipe.models import Factory, Pretrained
from curate.recipe.optimizers import Optimizer, OwnGroup
from curate.recipe.schema import Recipe
from curate.recipe.selection import Keep, Selection
from curate.recipe.tune import Tune

__all__ = [
    "Factory",
    "Keep",
    "Optimizer",
    "OwnGroup",
    "Pretrained",
    "Recipe",
    "Selection",
    "Source",
    "Split",
    "Tune",
    "check_recipe",
    "fingerprint",
    "load_recipe",
    "resolved",
    "write_recipe",
]
