"""Scores shrunk to what repeats: against truths that were made, where noise is known."""

import numpy as np
import pytest

from curate.selection.policies import normal_scores, shrink


def made(noise: float, agrees: float, count: int = 3000) -> tuple[np.ndarray, ...]:
    """True worth, influences on two halves with so much noise, and evidence with so much truth."""
    random = np.random.default_rng(0)
    truth = random.normal(size=count)
    halves = truth + noise * random.normal(size=(2, count))
    evidence = agrees * truth + random.normal(size=count)
    return truth, halves, evidence[None]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_reliability_is_the_square_of_what_scores_have_to_do_with_the_truth(noise: float) -> None:
    truth, halves, _ = made(noise, 0.0)
    found = shrink(halves, np.zeros((0, len(truth))), 200).repeats
    assert found.low < 1 / (1 + noise**2) < found.high
    assert found.reliability == pytest.approx(
        correlation(halves.mean(axis=0), truth) ** 2, abs=0.05
    )


def test_so_many_target_rows_make_scores_reliable() -> None:
    """Of noise 3 at 100 rows a half: with n rows in all its variance is 9 * 100 / n."""
    truth, halves, _ = made(3.0, 0.0, count=200_000)
    found = shrink(halves, np.zeros((0, len(truth))), 200)
    assert found.repeats.rows_needed == pytest.approx(100 * 9 * 0.8 / 0.2, rel=0.05)


@pytest.mark.parametrize(("noise", "agrees"), [(3.0, 2.0), (3.0, 0.0), (0.3, 0.0), (1.0, 0.5)])
def test_evidence_helps_where_there_is_some_and_harms_little_where_there_is_none(
    noise: float, agrees: float
) -> None:
    truth, halves, evidence = made(noise, agrees)
    alone = correlation(halves.mean(axis=0), truth)
    found = correlation(shrink(halves, evidence, 200).values, truth)
    assert found > (alone + 0.05 if agrees > 1 else alone - 0.05)


def test_evidence_against_the_influences_gets_no_say_of_its_own() -> None:
    truth, halves, evidence = made(1.0, 1.0)
    found = shrink(halves, -evidence, 200).values
    assert correlation(found, truth) > correlation(halves.mean(axis=0), truth) - 0.02


def test_scores_by_one_half_know_no_noise_of_the_other() -> None:
    _, halves, evidence = made(1.0, 0.5)
    noise = halves[1] - halves.mean(axis=0)
    found = shrink(halves, evidence, 200)
    assert abs(correlation(found.by_half[0], np.random.default_rng(5).permutation(noise))) < 0.1
    again = shrink(np.stack([halves[0], 5 * halves[1] + 7]), evidence, 200)
    np.testing.assert_allclose(again.by_half[0], found.by_half[0])  # its scale is of no account


def test_where_nothing_repeats_that_is_said() -> None:
    random = np.random.default_rng(1)
    found = shrink(random.normal(size=(2, 500)), np.zeros((0, 500)), 50).repeats
    assert found.low < 0 < found.high
    assert found.rows_needed is None


@pytest.mark.parametrize("halves", [np.zeros((2, 6)), np.stack([np.arange(6.0), np.zeros(6)])])
def test_scores_are_finite_whatever_never_varies(halves: np.ndarray) -> None:
    found = shrink(halves, np.zeros((2, 6)), 8)
    assert np.isfinite(found.values).all()
    assert np.isfinite([v for v in found.repeats.row().values() if v is not None]).all()


def test_normal_scores_share_ties_and_keep_the_order() -> None:
    found = normal_scores(np.array([3.0, 1.0, 1.0, 9.0]))
    assert found[1] == found[2] < found[0] < found[3]
    assert normal_scores(np.arange(999.0)).mean() == pytest.approx(0, abs=1e-12)
