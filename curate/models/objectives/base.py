"""Objectives: one loss per example, and how many terms each example has in a mean."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from curate.datasets import batch_length, leaves

Batch = Any
"""A mapping with "features" and "label" from a recipe, anything from a loader of the user's."""
Model = Callable[..., Any]


class Objective(Protocol):
    """What is minimized: sum(losses) / sum(sizes), in training and on targets alike.

    A subclass must define `losses`; by default each example is one term, without metrics.
    """

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """The loss of every example, summed over its terms, shape (n,)."""
        ...

    def sizes(self, batch: Batch) -> Tensor:
        """Terms of every example (1, or its tokens), shape (n,); read from data alone."""
        device = next((leaf.device for leaf in leaves(batch) if isinstance(leaf, Tensor)), None)
        return torch.ones(batch_length(batch), device=device)

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """What people also want to know, per example: name -> shape (n,)."""
        del model, batch
        return {}


def losses_and_metrics(
    objective: Objective, model: Model, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Both of an objective for a batch.

    Cost: a forward pass for each, or one where the objective's class has a method of this name,
    unless a subclass has `losses` or `metrics` of its own.
    """
    methods = ("losses_and_metrics", "losses", "metrics")
    own = [name for base in type(objective).__mro__ for name in methods if name in vars(base)]
    if own[:1] == [methods[0]]:
        both: tuple[Tensor, dict[str, Tensor]] = getattr(objective, methods[0])(model, batch)
        return both
    return objective.losses(model, batch), objective.metrics(model, batch)


def class_losses(objective: Objective, model: Model, batch: Batch, classes: int) -> Tensor:
    """The losses that examples would have with each of so many classes, shape (n, classes).

    Cost: as many forward passes, or one where the objective has a method of this name.
    """
    own = getattr(objective, "class_losses", None)
    if own is not None:
        found: Tensor = own(model, batch, classes)
        return found
    key = "labels" if "labels" in batch else "label"
    others = ({**batch, key: torch.full_like(batch[key], k)} for k in range(classes))
    return torch.stack([objective.losses(model, other) for other in others], dim=1)


def describe(output: object) -> str:
    """What a function returned, for messages."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"
