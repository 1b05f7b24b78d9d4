"""Look-ahead: what a candidate does to the target, a horizon of steps later."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from curate.selection import Array
from curate.selection.policies.base import Evidence, Offer, Setting
from curate.selection.ranking import average_ranks

STEP = 0.5
SMALLEST, LARGEST = 0.02, 2.0
TIE = 1e-6


@dataclass(frozen=True)
class LookAhead:
    """Value = influence on all targets together; in rounds, a weight that moves with it.

    The driver decides where a window ends: the same policy is offline at K = T and online at
    K = 1.

    An influence is a derivative at "everything kept", far from where keeping half of a batch
    ends. With `rounds` > 1 the window is therefore valued again, each time at weights that have
    moved by

        w <- clamp(w + 0.5 r, 0.02, 2),   r = rank of the influence in the step, in -1..1

    and the value is the last weight (DESIGN 3.7). The influence is taken per unit of weight, so
    that a candidate is not judged by how little of it is left.

    With several targets, the influence is on the weighted mean of their losses; targets with
    losses on a larger scale count for more.
    """

    rounds: int = 1

    needs = Evidence.INFLUENCE

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1 but got {self.rounds}")

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting.rounds)

    def values(self, offer: Offer) -> Array:
        assert offer.influences is not None
        if self.rounds == 1:
            return _mean(offer.influences, offer)
        rank = centered_ranks(_mean(offer.influences / offer.weights, offer))
        moved: Array = np.clip(offer.weights + STEP * rank, SMALLEST, LARGEST)
        return moved + TIE * (1 + rank)  # where the clamp made them equal, the last rank decides


def _mean(influences: Array, offer: Offer) -> Array:
    """sum_q v_q I_q / sum_q v_q, in loss units, shape (n,)."""
    mean: Array = np.average(influences, axis=0, weights=offer.target_weights)
    return mean


def centered_ranks(values: Array) -> Array:
    """Ranks of the values, shape (n,), scaled to -1..1; equal values share a rank."""
    return average_ranks(values) * 2 / (len(values) - 1) - 1 if len(values) > 1 else np.zeros(1)
