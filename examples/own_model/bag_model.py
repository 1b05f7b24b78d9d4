"""A model and an objective of one's own, named by path in recipe.yaml."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class Bag(nn.Module):
    """Counts of words, damped, through one hidden layer to two topics."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(words, width)
        self.head = nn.Linear(width, 2)

    def forward(self, counts: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.hidden(torch.log1p(counts))))
        return logits


def build(words: int, width: int = 32) -> nn.Module:
    """The factory: called with the recipe's `model.arguments`."""
    return Bag(words, width)


def smoothed(model: Callable[[Tensor], Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """The objective: one loss per example, shape (n,)."""
    return nn.functional.cross_entropy(
        model(batch["features"]), batch["label"], reduction="none", label_smoothing=0.05
    )
