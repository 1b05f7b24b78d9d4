"""Objectives of the user's own: functions, objects, and paths `package.module:name` to them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from curate.datasets import batch_length
from curate.errors import ModelError
from curate.models.from_path import foreign_code, load_attribute
from curate.models.objectives.base import Batch, Model, Objective, describe


class FunctionObjective(Objective):
    """A user's `function(model, batch)` -> one loss per example, shape (n,)."""

    def __init__(self, function: Callable[[Model, Batch], Tensor], name: str) -> None:
        self.function, self.name = function, name

    def losses(self, model: Model, batch: Batch) -> Tensor:
        losses: object = self.function(model, batch)
        count = batch_length(batch)
        if not isinstance(losses, Tensor) or losses.shape != (count,):
            raise ModelError(
                f"objective {self.name} must return one loss per example, shape ({count},), "
                f"but got {describe(losses)}; do not reduce over the batch."
            )
        return losses


def as_objective(source: Any, name: str) -> Objective:
    """An Objective, a class of them, or a function (model, batch) -> losses; as an Objective."""
    if isinstance(source, type):
        source = source()
    if all(callable(getattr(source, part, None)) for part in ("losses", "sizes", "metrics")):
        objective: Objective = source
        return objective
    if callable(source):
        return FunctionObjective(source, name)
    raise ModelError(
        f"objective: {name} is a {type(source).__name__}; it must be a function (model, batch) "
        "-> losses, or an object with losses, sizes and metrics."
    )


def load_objective(path: str, key: str = "objective") -> Objective:
    """The objective at `path`: a function (model, batch) -> losses, or an Objective.

    key: the recipe's, for errors.
    """
    source = load_attribute(path, key)
    if callable(source) and not isinstance(source, type):
        source = foreign_code(f"{key}: {path}")(source)
    return as_objective(source, path)
