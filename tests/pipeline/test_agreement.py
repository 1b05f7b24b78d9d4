"""Agreement of predictions with the truth, against scipy."""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from curate.pipeline.agreement import Agreement, Interval, agree
from curate.selection.ranking import correlation, rank_correlation


def pairs(count: int, noise: float = 0.3, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    predicted = random.normal(size=count)
    return predicted, predicted + noise * random.normal(size=count)


def test_a_constant_correlates_with_nothing_and_gives_no_verdict() -> None:
    one, _ = pairs(10)
    constant = np.full(10, 0.1)
    assert math.isnan(rank_correlation(one, constant))
    assert math.isnan(correlation(np.zeros(10), one))
    for predicted, actual in ((one, constant), (constant, one), (np.zeros(10), np.zeros(10))):
        found = agree(predicted, actual)
        assert math.isnan(found.spearman.value)
        assert math.isnan(found.spearman.low)
        assert math.isnan(found.spearman.high)
        assert found.verdict().startswith("no verdict")
    assert math.isnan(agree(np.zeros(10), one).slope)


def test_numbers_are_what_they_are_called() -> None:
    predicted, actual = np.array([1.0, 2.0, -1.0, 4.0]), np.array([2.0, 2.0, -4.0, 4.0])
    found = agree(predicted, actual)
    assert found.examples == 4
    assert found.slope == pytest.approx((2 + 4 + 4 + 16) / (1 + 4 + 1 + 16))
    assert found.relative_error == pytest.approx(np.median([0.5, 0, 0.75, 0]))
    assert found.error == pytest.approx(1.0)
    assert found.signal == pytest.approx(3.0)


def test_a_change_of_0_is_an_infinite_relative_error_and_no_warning() -> None:
    found = agree(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 3.0]))
    assert found.relative_error == math.inf


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("count", [8, 40])
def test_the_interval_contains_the_value(count: int, noise: float) -> None:
    for seed in range(2):
        found = agree(*pairs(count, noise, seed))
        for interval in (found.spearman, found.pearson):
            assert -1 - 1e-12 <= interval.low <= interval.value + 1e-12
            assert interval.value - 1e-12 <= interval.high <= 1 + 1e-12


def test_the_interval_shrinks_with_the_examples() -> None:
    widths = []
    for count in (10, 40, 160):
        found = agree(*pairs(count, 1.0)).spearman
        widths.append(found.high - found.low)
    assert all(later < 0.75 * earlier for earlier, later in pairwise(widths))


def test_the_interval_is_the_bootstraps() -> None:
    one, other = pairs(60, 1.0)
    found = agree(one, other).pearson
    expected = stats.bootstrap(
        (one, other),
        lambda a, b: stats.pearsonr(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.03)
    assert found.high == pytest.approx(expected.high, abs=0.03)


def test_the_interval_is_the_same_each_time() -> None:
    assert agree(*pairs(20)) == agree(*pairs(20))
    assert agree(*pairs(20), seed=1).spearman != agree(*pairs(20)).spearman


@pytest.mark.parametrize(
    ("low", "slope", "words"),
    [
        (0.95, 1.0, "trustworthy"),
        (0.9, 0.8, "trustworthy"),
        (0.9, 1.25, "trustworthy"),
        (0.9, 0.79, "sizes are too large (slope 0.79)"),
        (0.99, 1.26, "sizes are too small (slope 1.26)"),
        (0.89, 1.0, "good: sizes are right and the order nearly so"),
        (0.8, 1.25, "good"),
        (0.8, 0.5, "the order can be trusted; sizes are too large"),
        (0.79, 1.0, "a rough order"),
        (0.5, 9.0, "a rough order"),
        (0.49, 1.0, "do not act on these scores"),
        (-0.3, 1.0, "do not act on these scores"),
        (float("nan"), 1.0, "no verdict"),
    ],
)
def test_the_verdict_goes_by_the_lower_end_of_the_interval(
    low: float, slope: float, words: str
) -> None:
    interval = Interval(0.99, low, 0.995)
    assert words in Agreement(64, interval, interval, slope, 0.1, 0.1, 1.0).verdict()


def test_an_interval_reads_well() -> None:
    assert str(Interval(0.98765, -0.5, 1)) == "0.988 [-0.500, 1.000]"


def test_few_examples_get_no_verdict_however_well_they_agree() -> None:
    values = np.arange(10.0)
    assert agree(values[:9], values[:9]).verdict().startswith("no verdict: 9 examples")
    assert agree(values, values).verdict().startswith("trustworthy")


def test_what_is_not_finite_is_left_aside() -> None:
    predicted, actual = np.arange(20.0), np.arange(20.0) ** 2
    expected = agree(predicted[:18], actual[:18])
    actual[18:] = [np.nan, np.inf]
    assert agree(predicted, actual) == expected
    nothing = agree(predicted, np.full(20, np.nan))
    assert nothing.examples == 0
    assert "no verdict" in nothing.verdict()


def test_plain_values_are_json_of_any_kind() -> None:
    found = agree(np.ones(12), np.arange(12.0)).as_dict()
    assert found["spearman"]["value"] is None
    json.dumps(found, allow_nan=False)
