"""Ranks and correlations, against scipy."""

import numpy as np
import pytest
from scipy import stats

from curate.selection.ranking import correlation, rank_correlation
from tests.pipeline.test_agreement import pairs


@pytest.mark.parametrize("count", [2, 3, 30])
def test_correlations_are_scipys(count: int) -> None:
    one, other = pairs(count)
    assert correlation(one, other) == pytest.approx(stats.pearsonr(one, other)[0], rel=1e-12)
    expected = stats.spearmanr(one, other)[0]
    assert rank_correlation(one, other) == pytest.approx(expected, rel=1e-12)


def test_ties_share_their_ranks() -> None:
    one = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 3.0, -1.0])
    other = np.array([0.0, 2.0, 2.0, 2.0, 5.0, 5.0, 0.0])
    expected = stats.spearmanr(one, other)[0]
    assert rank_correlation(one, other) == pytest.approx(expected, rel=1e-12)
