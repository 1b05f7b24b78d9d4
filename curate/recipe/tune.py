"""The tune section of a recipe: what `curate tune` may try, and at what price."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from curate.recipe.optimizers import LearningRate
from curate.recipe.section import NO_REPEATS, Count, Fraction, Section, Seed, in_words

Horizons = Annotated[list[Count | Literal["full"]], Field(min_length=1)]
A_LIST = "must be a list of numbers of steps, at least 1, or `full` but got {got}"
Rates = Annotated[list[LearningRate], Field(min_length=1)]


class Tune(Section):
    """Which pairs of horizon and learning rate are tried, and at what price."""

    horizons: Annotated[Horizons | None, in_words(A_LIST), NO_REPEATS] = None
    """The horizons to try, in steps, or `full`; derived from the run's length if not given."""
    learning_rates: Rates | None = None
    """The learning rates to try; around the recipe's if not given."""
    budget: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The most that is spent, as a share of what a selection run of every pair would cost; if not
    given, more where that does not pay for the pilots and one run."""
    metric: Annotated[str, Field(min_length=1)] = "loss"
    """What pairs are judged by: `loss`, or a metric of the objective that is better when higher,
    such as accuracy."""
    validation: Fraction = 0.5
    """The share of the validation set that judges the pairs and that no score sees."""
    seeds: Annotated[list[Seed], Field(min_length=1), NO_REPEATS] = [0, 1, 2]
    """The seeds of the retrainings that a value is the mean of."""
    coverage: Fraction = 0.1
    """The share of a pilot's steps that is looked at, per horizon."""
    trust: Annotated[float, Field(gt=0)] = 1.0
    """The most that an influence may be expected to be off by, in units of the mean influence."""

    @field_validator("learning_rates")
    @classmethod
    def _told_apart(cls, value: list[float] | None) -> list[float] | None:
        """By the six digits that names of files and reports have room for."""
        if value is not None and len({f"{lr:g}" for lr in value}) < len(value):
            raise ValueError(f"must not repeat itself within six digits but got {value}")
        return value
