"""What is odd about a recipe or its data that can be run: remarks made before the work begins."""

import torch

from curate.datasets import Scaling, TensorExamples
from curate.pipeline.candidates import Candidates
from curate.recipe import Recipe
from curate.recipe.data import Split

WILD = 100
"""Ratio of the spreads of two features from which they count as of different scales."""


def remarks(recipe: Recipe, data: Candidates) -> list[str]:
    """Sentences for a user, each with what to do."""
    return [*_scales(recipe, data), *_overlaps(recipe, data), *_warm_up(recipe)]


def horizon_remark(recipe: Recipe, steps: int) -> str | None:
    """A remark on a horizon that the recipe names and a run of so many steps does not reach."""
    horizon = recipe.selection.horizon
    named = "horizon" in recipe.selection.model_fields_set
    if not named or horizon == "full" or horizon <= steps:
        return None
    return (
        f"selection.horizon {horizon:,} is longer than the run, {steps:,} steps: each look ahead "
        "goes to its end, as with full."
    )


def _scales(recipe: Recipe, data: Candidates) -> list[str]:
    examples = data.examples
    if recipe.data.standardize or not isinstance(examples, TensorExamples):
        return []
    features = examples.features
    if features.ndim != 2 or features.dtype == torch.uint8:
        return []
    factor = Scaling.standardizing(features, torch.float64).factor
    spread = 1 / factor[factor > 0]
    if not len(spread) or spread.max() <= WILD * spread.min():
        return []
    return [
        f"the spread of one feature is {float(spread.max() / spread.min()):.0f} times another's, "
        "which few models train on well; data.standardize: true brings them to one scale."
    ]


def _warm_up(recipe: Recipe) -> list[str]:
    """Rows that horizon 1 does not judge where a step moves nothing."""
    if recipe.training.schedule.warmup_steps == 0 or recipe.selection.horizon != 1:
        return []
    return [
        "the first step of a warm-up has a learning rate of 0, so a horizon of 1 does not judge "
        "its rows there, and not at all if they are offered once; selection.horizon: 8 does."
    ]


def _overlaps(recipe: Recipe, data: Candidates) -> list[str]:
    """Rows that targets from another source share with the candidates.

    Rows held out by fraction are others anyway.
    """
    if isinstance(recipe.data.validation, Split):
        return []
    targets = {name: [*map(hash, part.contents())] for name, part in data.validation.items()}
    wanted, lines = set[int]().union(*targets.values()), []
    candidates = {row for row in map(hash, data.examples.contents()) if row in wanted}
    for name, rows in targets.items():
        both = sum(row in candidates for row in rows)
        if both:
            lines.append(
                f"{both} of {len(rows)} rows of {name} are candidates as well (labels aside), "
                "and a row that is its own target speaks for itself; take them out of one of them."
            )
    return lines
