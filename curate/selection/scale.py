"""One scale for the values of different steps, labels and targets."""

import numpy as np

from curate.selection import Array

SMALLEST_STRATUM = 3


def standardize(values: Array, strata: Array | None = None) -> Array:
    """Values of one step to mean 0 and spread 1, within each stratum where there is one.

    Influences of different steps are not on one scale, and those of different
    labels seldom (DESIGN 3.10). A stratum of fewer than three rows is measured
    against the whole step instead. A step whose values are all equal scores 0.

    Args:
        values: shape (n,). strata: the label of each row, shape (n,), or None.
    """
    scores = _centered(values)
    if strata is not None:
        for stratum in np.unique(strata):
            own = strata == stratum
            if own.sum() >= SMALLEST_STRATUM:
                scores[own] = _centered(values[own])
    return scores


def _centered(values: Array) -> Array:
    spread = values.std()
    centered: Array = values - values.mean()
    return centered / spread if spread > 1e-12 * np.abs(values).max(initial=0.0) else centered * 0.0
