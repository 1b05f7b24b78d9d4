"""The tune section of a recipe: what `curate tune` may try, and at what price."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from curate.recipe.optimizers import LearningRate
from curate.recipe.section import NO_REPEATS, Count, Fraction, Section, Seed, in_words

Horizons = Annotated[list[Count | Literal["full"]], Field(min_length=1)]
A_LIST = "must be a list of numbers of steps, at least 1, or `full` but got {got}"
Rates = Annotated[list[LearningRate], Field(min_length=1)]


class Tune(Section):
    """Which pairs of horizon and learning rate are tried, and at what price.

    horizons, learning_rates: the grid; derived from the recipe where not given. budget: at most
    this share of what a selection run of every pair would cost. validation: the share of the
    validation set that judges the pairs and that no score sees. metric: on it, `loss`, or one of
    the objective's that is better when higher, such as accuracy. seeds: of the retrainings that
    a value is the mean of. coverage: share of a pilot's steps that is looked at, per horizon.
    trust: most that an influence may be expected to be off by, in units of the mean influence.
    """

    horizons: Annotated[Horizons | None, in_words(A_LIST), NO_REPEATS] = None
    learning_rates: Rates | None = None
    budget: Annotated[float, Field(gt=0, le=1)] = 0.25
    metric: Annotated[str, Field(min_length=1)] = "loss"
    validation: Fraction = 0.5
    seeds: Annotated[list[Seed], Field(min_length=1), NO_REPEATS] = [0, 1, 2]
    coverage: Fraction = 0.1
    trust: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("learning_rates")
    @classmethod
    def _told_apart(cls, value: list[float] | None) -> list[float] | None:
        """By the six digits that names of files and reports have room for."""
        if value is not None and len({f"{lr:g}" for lr in value}) < len(value):
            raise ValueError(f"must not repeat itself within six digits but got {value}")
        return value
