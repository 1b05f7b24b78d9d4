"""Look-ahead: what a candidate does to the target, a horizon of steps later."""

from dataclasses import dataclass

from curate.policies.base import Array, Evidence, Offer


@dataclass(frozen=True)
class LookAhead:
    """Value = influence.

    The horizon belongs to the driver, which decides where a window ends: the
    same policy is offline at K = T and online at K = 1.
    """

    needs = Evidence.INFLUENCE

    def values(self, offer: Offer) -> Array:
        assert offer.influences is not None
        return offer.influences
