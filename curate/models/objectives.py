"""Objectives: one loss per example, and how many terms each example has in a mean."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from curate.datasets import batch_length, leaves
from curate.errors import ModelError

Batch = Any
"""A mapping with "features" and "label" from a recipe, anything from a loader of the user's."""
Model = Callable[..., Any]


class Objective(Protocol):
    """What is minimized. Training and targets both use sum(losses) / sum(sizes)."""

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """The loss of every example, summed over its terms, shape (n,)."""
        ...

    def sizes(self, batch: Batch) -> Tensor:
        """Terms of every example (1, or its tokens), shape (n,); read from data alone."""
        ...

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """What people also want to know, per example: name -> shape (n,)."""
        ...


def _ones(batch: Batch) -> Tensor:
    device = next((leaf.device for leaf in leaves(batch) if isinstance(leaf, Tensor)), None)
    return torch.ones(batch_length(batch), device=device)


class Classification:
    """Cross-entropy of `model(batch["features"])`, shape (n, classes), with batch["label"]."""

    def losses(self, model: Model, batch: Batch) -> Tensor:
        losses: Tensor = F.cross_entropy(
            self._logits(model, batch), batch["label"], reduction="none"
        )
        return losses

    def sizes(self, batch: Batch) -> Tensor:
        return _ones(batch)

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        guess = self._logits(model, batch).argmax(dim=1)
        return {"accuracy": (guess == batch["label"]).double()}

    @staticmethod
    def _logits(model: Model, batch: Batch) -> Tensor:
        logits = model(batch["features"])
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch["label"]):
            raise ModelError(
                "objective classification needs model(features) to be a tensor of shape "
                f"({len(batch['label'])}, classes) but got {_describe(logits)}."
            )
        return logits


class Regression:
    """Squared error of `model(batch["features"])` with batch["label"], summed over outputs.

    The prediction has shape (n,) or (n, k), the label (n,) or (n, k); (n,) and
    (n, 1) are the same thing.
    """

    def losses(self, model: Model, batch: Batch) -> Tensor:
        label = batch["label"].reshape(len(batch["label"]), -1)
        output = model(batch["features"])
        if not isinstance(output, Tensor) or output.numel() != label.numel():
            raise ModelError(
                f"objective regression needs model(features) to be a tensor of shape "
                f"{tuple(label.shape)} but got {_describe(output)}."
            )
        losses: Tensor = (output.reshape(label.shape) - label).square().sum(dim=1)
        return losses

    def sizes(self, batch: Batch) -> Tensor:
        return _ones(batch)

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        del model, batch
        return {}


class FunctionObjective:
    """A user's `function(model, batch)` -> one loss per example, shape (n,)."""

    def __init__(self, function: Callable[[Model, Batch], Tensor], name: str) -> None:
        self.function = function
        self.name = name

    def losses(self, model: Model, batch: Batch) -> Tensor:
        losses: object = self.function(model, batch)
        count = batch_length(batch)
        if not isinstance(losses, Tensor) or losses.shape != (count,):
            raise ModelError(
                f"objective {self.name} must return one loss per example, shape ({count},), "
                f"but got {_describe(losses)}; do not reduce over the batch."
            )
        return losses

    def sizes(self, batch: Batch) -> Tensor:
        return _ones(batch)

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        del model, batch
        return {}


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
