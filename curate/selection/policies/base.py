"""What a policy is: it says how much each candidate is worth."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self

from curate.selection import Array


class Evidence(Enum):
    """What a policy has to be shown before it can judge."""

    NOTHING = "nothing"  # no training at all
    LOSS = "loss"  # a forward run
    INFLUENCE = "influence"  # a forward run and the way back through it


@dataclass(frozen=True)
class Offer:
    """The candidates of one step, and the evidence about them.

    rows: positions among the candidates, shape (n,).
    weights: in the step's mean, shape (n,), as the evidence was gathered; 1 at first.
    losses: training losses before the step, shape (n,); None without evidence.
    influences: on every target, shape (Q, n), positive helps; None without evidence.
    target_weights: in the mean over the targets, shape (Q,); None for equal ones.

    Losses and influences are those of the whole row, or per token where that is asked for.
    """

    rows: Array
    weights: Array
    losses: Array | None = None
    influences: Array | None = None
    target_weights: Array | None = None


@dataclass(frozen=True)
class Setting:
    """What a recipe gives to a policy.

    rounds, seed, neighbors: as asked for. candidates: how many there are. points: features and
    labels of the candidates, shapes (N, F) and (N,), and those of the target rows, where labels are
    classes; made when they are asked for.
    """

    rounds: int
    seed: int
    neighbors: int
    candidates: int
    points: Callable[[], tuple[Array, Array, Array, Array]]


class Policy(Protocol):
    """Values candidates, higher for better; the budget decides what follows from a value.

    A policy of more than one round values them again with its own values, which are then
    above 0, as the weights of the step.
    """

    @classmethod
    def of(cls, setting: Setting) -> Self:
        """The policy as a recipe sets it."""
        ...

    @property
    def needs(self) -> Evidence:
        """The evidence that `values` reads."""
        ...

    @property
    def rounds(self) -> int:
        """How often a window is valued, at least 1."""
        ...

    def values(self, offer: Offer) -> Array:
        """The worth of every candidate offered, shape (n,), finite; depends on nothing else."""
        ...
