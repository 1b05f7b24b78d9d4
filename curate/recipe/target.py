"""The target section of a recipe: what is to be low on the validation rows."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from curate.recipe.section import Section

GOALS = ("margin", "focal")
"""What a target may be about by name, for classifiers."""


class TargetSection(Section):
    """What influences are about: by default the loss of training, every row alike."""

    loss: Annotated[str, Field(min_length=1)] | None = None
    """A smooth function of the outputs, `package.module:name`, (model, batch) -> a number per row
    that is better low; `margin` or `focal` for classifiers; the objective of training if not given.
    """
    balance: Annotated[str, Field(min_length=1)] | None = None
    """A column of the validation rows, such as the label: every value of it counts the same in the
    mean, however many rows have it."""
    worst: Annotated[float, Field(gt=0, le=1000)] | None = None
    """With `balance`: how far the group with the highest loss counts more than the others: the log
    mean exp of `worst` times the losses, over `worst`; 0 would be the mean, 100 is the worst alone.
    """

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss is not None and self.loss not in GOALS and ":" not in self.loss:
            raise ValueError(
                f"loss must be {', '.join(GOALS)} or package.module:name but got {self.loss!r}"
            )
        if self.worst is not None and self.balance is None:
            raise ValueError("worst is the worst of groups; give `balance: COLUMN` beside it")
        return self
