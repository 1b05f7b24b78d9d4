"""Random choice: one uniform number per row and seed."""

import numpy as np

from curate.selection.policies import Offer, Random


def values(count: int, seed: int) -> np.ndarray:
    return Random(count, seed).values(Offer(np.arange(count), np.ones(count)))


def test_values_are_uniform_and_differ() -> None:
    numbers = values(20_000, 0)
    assert len(np.unique(numbers)) == 20_000
    np.testing.assert_allclose(
        np.quantile(numbers, [0, 0.25, 0.5, 1]), [0, 0.25, 0.5, 1], atol=0.02
    )


def test_seeds_disagree() -> None:
    correlation = np.corrcoef(values(2000, 0), values(2000, 1))[0, 1]
    assert abs(correlation) < 0.1
