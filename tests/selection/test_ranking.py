"""Ranks and correlations, against scipy."""

import numpy as np
import pytest
from scipy import stats

from curate.selection.ranking import auroc, average_ranks, correlation, rank_correlation
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


def test_average_ranks_count_from_zero() -> None:
    values = np.array([3.0, 1.0, 1.0, 9.0])
    assert average_ranks(values).tolist() == [2, 0.5, 0.5, 3]
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values) - 1)


def test_what_never_varies_has_no_correlation() -> None:
    assert np.isnan(correlation(np.ones(3), np.arange(3.0)))


def test_auroc_is_the_share_of_pairs_in_order_ties_counting_half() -> None:
    random = np.random.default_rng(0)
    scores, positive = random.integers(0, 5, 40).astype(float), random.random(40) < 0.3
    above = scores[positive][:, None] - scores[~positive]
    assert auroc(scores, positive) == pytest.approx(((above > 0) + (above == 0) / 2).mean())
    assert auroc(np.arange(4.0), np.arange(4) > 1) == 1
