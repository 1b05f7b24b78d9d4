"""Small loss: drop what the model finds hard, as mislabeled rows often are."""

from dataclasses import dataclass
from typing import Self

from curate.selection import Array
from curate.selection.policies.base import Evidence, Offer, Setting


@dataclass(frozen=True)
class SmallLoss:
    """Value = -loss: rows of high training loss go first.

    The "small-loss trick" of co-teaching (Han et al., arXiv:1804.06872).
    """

    needs = Evidence.LOSS
    rounds = 1

    @classmethod
    def of(cls, setting: Setting) -> Self:
        del setting
        return cls()

    def values(self, offer: Offer) -> Array:
        assert offer.losses is not None
        return -offer.losses
