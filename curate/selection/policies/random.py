"""Random choice: the baseline that any score has to beat."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from curate.selection import Array
from curate.selection.policies.base import Evidence, Offer, Setting


@dataclass(frozen=True)
class Random:
    """Value = a uniform random number for each of `count` rows, the same in every step."""

    count: int
    seed: int = 0

    needs = Evidence.NOTHING
    rounds = 1

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting.candidates, setting.seed)

    def values(self, offer: Offer) -> Array:
        numbers: Array = np.random.default_rng(self.seed).random(self.count)[offer.rows]
        return numbers
