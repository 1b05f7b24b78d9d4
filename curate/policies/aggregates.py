"""Several targets, one worth: what a candidate's influences on each of them come to."""

from collections.abc import Callable

import numpy as np

from curate.policies.base import Array, Offer
from curate.policies.standardise import standardise

Aggregate = Callable[[Array, Offer], Array]
"""Influences on every target, shape (Q, n), of the candidates of an offer -> worth, (n,)."""


def mean(influences: Array, offer: Offer) -> Array:
    """What the candidate does to the mean of the targets' losses, by their weights; loss units.

    sum_q v_q I_q / sum_q v_q. Targets with losses on a larger scale count for more.
    """
    found: Array = np.average(influences, axis=0, weights=offer.target_weights)
    return found


def least(influences: Array, offer: Offer) -> Array:
    """What the candidate does for the target that it helps least.

    min_q z_q, with z_q = I_q standardised within the step and stratum, so that no target
    decides by the scale of its loss. No unit.
    """
    found: Array = np.min([standardise(own, offer.strata) for own in influences], axis=0)
    return found


AGGREGATES: dict[str, Aggregate] = {"mean": mean, "weighted": mean, "min": least}
"""By the recipe's name; `weighted` is a mean whose weights are not all the same."""
