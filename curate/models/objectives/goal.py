"""What a target is about, where that is not the loss of training: a smooth function of outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from curate.errors import ModelError
from curate.models.objectives.base import Batch, Model, Objective
from curate.models.objectives.function import load_objective

FOCUS = 2.0
"""The exponent of the focal loss (Lin et al. 2017)."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the right class is behind the others, smoothly: log sum exp of theirs, less its own.

    Unlike cross-entropy it goes on to fall where a row is right already, at the same rate.
    """
    own = F.one_hot(labels, logits.shape[1]).bool()
    others = torch.logsumexp(logits.masked_fill(own, -torch.inf), dim=1)
    return others - logits[own]


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy times (1 - p)^2: rows that are right already count little."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (-torch.expm1(-losses)).pow(FOCUS) * losses


BUILT_IN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"margin": margin, "focal": focal}


@dataclass
class Goal(Objective):
    """A function of the outputs on a target's rows; beside it, what training is measured by.

    own: what is to be low. training: the objective of training.
    """

    own: Objective
    training: Objective

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return self.own.losses(model, batch)

    def sizes(self, batch: Batch) -> Tensor:
        return self.own.sizes(batch)

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        losses, sizes = self.training.losses(model, batch), self.training.sizes(batch)
        found = {"training loss": (losses / sizes.clamp_min(1)).double()}
        return found | self.training.metrics(model, batch)


@dataclass
class OfClasses(Objective):
    """A function of a classifier's logits, shape (n, classes), and the classes, shape (n,)."""

    name: str
    training: Objective

    def losses(self, model: Model, batch: Batch) -> Tensor:
        outputs = getattr(self.training, "outputs", None)
        if outputs is None:
            raise ModelError(
                f"target.loss: {self.name} reads the logits of a classifier, which this objective "
                "does not give; use one of your own, package.module:name."
            )
        values: Tensor = BUILT_IN[self.name](*outputs(model, batch))
        return values


def load_goal(path: str, training: Objective) -> Goal:
    """The goal of a name in `BUILT_IN`, or of a function or objective at `package.module:name`."""
    own = OfClasses(path, training) if path in BUILT_IN else load_objective(path, "target.loss")
    return Goal(own, training)
