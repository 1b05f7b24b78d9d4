"""A window of a loop: its batches, what was decided on them, what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.datasets import batch_length
from curate.selection import Array
from curate.selection.driver import Decided
from curate.selection.ledger import Outcome


@dataclass
class WindowReport(Outcome):
    """What one window came to, see `Outcome`; fewer steps than `horizon` at the end of an epoch.

    realized: measured when the loop has trained on the window and asks for the next; None until
    then. horizon: K asked for. seconds: spent choosing.
    gain: with `keep="auto"`, the loss on target rows that did not choose after training on
    everything, less that after training on what was or would have been kept; None until measured.
    """

    horizon: int = 1
    seconds: float = 0.0
    gain: float | None = None

    @property
    def ratio(self) -> float | None:
        """Realized over predicted: near 1 where the linear picture holds."""
        if self.realized is None or not self.predicted:
            return None
        return self.realized / self.predicted

    def metrics(self) -> dict[str, float | None]:
        """The numbers that trackers receive."""
        more = {"gain": self.gain, "horizon": self.horizon, "seconds": self.seconds}
        return super().metrics() | more


@dataclass(frozen=True)
class Decision:
    """What becomes of one batch, or of the part of it that one process has.

    influences: shape (Q, n), all weights 1. values: the policy's, shape (n,). Both are NaN for a
    batch that was not scored.
    weights: in the mean that the loop is to take, shape (n,); 0 is left out.
    factor: what the batch's gradient is multiplied by, see `Evening`.
    """

    influences: Tensor
    values: Array
    weights: Array
    factor: float = 1.0

    @property
    def kept(self) -> Array:
        """Shape (n,), bool."""
        kept: Array = self.weights > 0
        return kept


@dataclass
class Window:
    """Batches that were drawn together, and their weights, each of shape (n,).

    factors: what the gradient of each batch is multiplied by, see `Evening`.
    decided: None where nothing was scored. handed: how many batches the loop was given.
    restored: another process decided on them, and here they are still to be drawn; content: a
    digest of what they then have to be.
    """

    batches: Sequence[Any]
    weights: list[Array]
    factors: list[float]
    decided: Decided | None = None
    handed: int = 0
    restored: bool = False
    content: str = ""

    @property
    def watched(self) -> bool:
        """Whether enough is known of its steps to compare them with what the loop does."""
        return self.decided is not None and bool(self.decided.weights)

    @property
    def ahead(self) -> int:
        """Batches that the loop was not given yet."""
        return len(self.weights) - self.handed


def decisions_of(decided: Decided, batches: Sequence[Array]) -> list[Decision]:
    """What becomes of every batch of a window, the batches being at these positions in it."""
    assert decided.judged.scores is not None
    influences = torch.cat(decided.judged.scores.influences, dim=1)
    values, weights = np.concatenate(decided.judged.values), np.concatenate(decided.weights)
    return [
        Decision(influences[:, torch.from_numpy(rows)], values[rows], weights[rows])
        for rows in batches
    ]


def kept_whole(size: int, targets: int) -> Decision:
    """Nothing dropped from a batch that was not scored."""
    influences = torch.full((targets, size), torch.nan, dtype=torch.float64)
    return Decision(influences, np.full(size, np.nan), np.ones(size))


def whole_window(batches: Sequence[Any]) -> Window:
    """Batches that nobody decides on."""
    weights = [np.ones(batch_length(batch)) for batch in batches]
    return Window(batches, weights, [1.0] * len(batches))
