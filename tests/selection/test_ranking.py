"""Ranks and correlations, against scipy."""

import numpy as np
import pytest
from scipy import stats

from curate.runtime import large
from curate.selection import ranking
from curate.selection.ranking import (
    auroc,
    average_ranks,
    correlation,
    descending_ranks,
    normal_scores,
    rank_correlation,
)
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


@pytest.mark.parametrize("kind", ["different", "ties", "equal", "half"])
def test_ranks_of_more_than_is_sorted_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values = {
        "different": random.normal(size=999),
        "ties": random.normal(size=999).round(1),
        "equal": np.ones(999),
        "half": np.r_[np.zeros(500), random.normal(size=499)],
    }[kind]
    expected = average_ranks(values), descending_ranks(values)
    for name, value in (("AT_ONCE", 100), ("BUCKETS", 7)):
        monkeypatch.setattr(ranking, name, value)
    for name, value in (("SMALL", 64), ("PIECE", 70)):
        monkeypatch.setattr(large, name, value)
    np.testing.assert_array_equal(average_ranks(values), expected[0])
    np.testing.assert_array_equal(descending_ranks(values), expected[1])
    order = sorted(range(999), key=lambda i: (-values[i], i))
    assert [expected[1][i] for i in order] == [*range(1, 1000)]


def test_normal_scores_share_ties_and_keep_the_order() -> None:
    found = normal_scores(np.array([3.0, 1.0, 1.0, 9.0]))
    assert found[1] == found[2] < found[0] < found[3]
    assert normal_scores(np.arange(999.0)).mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(normal_scores(np.arange(4.0))[2:], [0.31864, 1.15035], atol=1e-5)
