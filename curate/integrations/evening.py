"""One mean over what all processes keep, in a loop that takes the mean of their means.

Where processes train together, gradients of their own means are averaged. What is kept of a batch
is decided for all of it, so they keep different numbers of rows, and each row of a process that
keeps few would weigh more. Here gradients are multiplied, as they come back, by what makes it the
mean over all rows; no row has to move.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.integrations.spread import Spread
from curate.integrations.training import LiveTraining
from curate.selection import Array
from curate.selection.driver import Decided


def handed(kept: Array) -> Array:
    """The rows of a batch that its process is given: those kept, or one that is not to count.

    A process that keeps nothing takes part in the step nevertheless. kept: shape (n,), bool.
    """
    return np.flatnonzero(kept) if kept.any() else np.arange(1)


def left_as_it_is(training: LiveTraining, kept: Array) -> bool:
    """Whether a step is plain training: of one process, which drops nothing."""
    return training.ranks.size == 1 and bool(kept.all())


def factors(
    training: LiveTraining, spread: Spread, decided: Decided, *, weighed: bool
) -> list[Array]:
    """For every step, what the gradient of each of this process's batches is multiplied by.

        sum of the sizes that the loop divides by / sum of those kept;      0 if none of it is kept

    which makes the loop's gradient the mean over all that is kept. What one process keeps whole is
    trained on as it is.

    weighed: whether the loop is given weights and takes the mean over rows, whatever their size;
    then these are factors of the weights.
    """
    assert decided.judged.scores is not None
    made = []
    for k, weights in enumerate(decided.weights):
        pieces = spread.pieces(k)
        mine = np.array([piece.rank == spread.rank for piece in pieces])
        kept = (weights > 0) | weighed
        if not weighed and left_as_it_is(training, kept):
            made.append(np.ones(len(pieces)))
            continue
        sizes = np.ones(len(kept)) if weighed else decided.judged.scores.sizes[k].double().numpy()
        given = [sizes[piece.rows][handed(kept[piece.rows])].sum() for piece in pieces]
        by_rank = np.array(given).reshape(training.ranks.size, -1)
        divisors = {
            "batch": by_rank * by_rank.size,
            "process": by_rank.sum(axis=1, keepdims=True) * len(by_rank),
            "step": by_rank.sum(),
        }[training.mean_over]
        some = np.array([kept[piece.rows].any() for piece in pieces])
        every = np.broadcast_to(divisors, by_rank.shape).reshape(-1) / ((sizes * kept).sum() or 1)
        made.append(np.where(some, every, 0.0)[mine])
    return made


class Evening:
    """Multiplies the gradients of a step's batches, each by a factor of its own.

    Cost: a multiplication of every gradient, in steps where a factor is not 1.
    """

    def __init__(self, training: LiveTraining) -> None:
        self._training = training
        self._handles: list[Any] = []

    def begin(self, factors: Sequence[float]) -> None:
        """A step begins, of batches with these factors, each with one backward pass."""
        self.stop()
        if all(factor == 1 for factor in factors):
            return
        for p in self._training.leaves().values():
            if p.requires_grad:
                self._handles.append(p.register_hook(_Scaling(self._training, factors)))

    def stop(self) -> None:
        """Gradients are as they come, again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Scaling:
    """A hook on one parameter, which counts the passes back to it."""

    def __init__(self, training: LiveTraining, factors: Sequence[float]) -> None:
        self._training, self._factors, self._passes = training, factors, 0

    def __call__(self, grad: Tensor) -> Tensor:
        if self._training.simulating:
            return grad
        factor = self._factors[min(self._passes, len(self._factors) - 1)]
        self._passes += 1
        # whatever the loss of a row is that does not count
        return grad * factor if factor else torch.zeros_like(grad)
