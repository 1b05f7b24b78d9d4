"""Influence and other evidence: against truths that were made, where noise is known."""

import numpy as np
import pytest

from curate.selection.policies import Combined, Halves, combine
from curate.selection.policies.combine import WEIGHTS
from curate.selection.ranking import normal_scores

VISITS = 2


def made(
    noise: float, agrees: float, *, shared: float = 0.0, count: int = 3000
) -> tuple[np.ndarray, ...]:
    """True worth; influences by half and visit, (2, 2, N), and evidence with so much truth.

    noise: of each half in each visit, and shared: of both halves in one visit, alike.
    """
    random = np.random.default_rng(0)
    truth = random.normal(size=count)
    own = noise * VISITS**0.5 * random.normal(size=(2, VISITS, count))
    visits = truth + own + shared * random.normal(size=(VISITS, count))
    return truth, visits, agrees * truth + random.normal(size=count)


def combined(visits: np.ndarray, evidence: np.ndarray | None = None, rows: int = 200) -> Combined:
    beside = {} if evidence is None else {"losses": evidence}
    return combine(Halves(visits.mean(axis=1), visits), rows, beside)


def weight(found: Combined) -> float:
    return found.repeats.evidence["losses"]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_reliability_is_the_square_of_what_scores_have_to_do_with_the_truth(noise: float) -> None:
    truth, visits, _ = made(noise, 0.0)
    found = combined(visits).repeats
    assert found.low < 1 / (1 + noise**2) < found.high
    assert found.reliability == pytest.approx(
        correlation(visits.mean(axis=(0, 1)), truth) ** 2, abs=0.05
    )


def test_so_many_target_rows_make_scores_reliable() -> None:
    """Of noise 3 at 100 rows a half: with n rows in all its variance is 9 * 100 / n."""
    _, visits, _ = made(3.0, 0.0, count=200_000)
    found = combined(visits).repeats
    assert found.rows_needed == pytest.approx(100 * 9 * 0.8 / 0.2, rel=0.05)


@pytest.mark.parametrize(("noise", "agrees"), [(3.0, 2.0), (3.0, 0.0), (0.3, 0.0), (1.0, 0.5)])
def test_evidence_helps_where_there_is_some_and_harms_little_where_there_is_none(
    noise: float, agrees: float
) -> None:
    truth, visits, evidence = made(noise, agrees)
    alone = correlation(visits.mean(axis=(0, 1)), truth)
    found = correlation(combined(visits, evidence).values, truth)
    assert found > (alone + 0.05 if agrees > 1 else alone - 0.05)


def test_evidence_counts_more_the_more_it_knows() -> None:
    weights = [weight(combined(*made(2.0, agrees)[1:])) for agrees in (0.0, 0.5, 3.0)]
    assert weights[0] < weights[1] < weights[2]


def test_what_both_halves_share_by_the_steps_they_were_taken_in_is_no_signal() -> None:
    """One visit's noise, alike on both halves: it looks like truth until visits are told apart."""
    truth, visits, evidence = made(0.5, 1.0, shared=3.0)
    halves = visits.mean(axis=1)
    assert correlation(*halves) > 0.8
    told = combine(Halves(halves, visits), 200, {"losses": evidence})
    untold = combine(Halves(halves, np.stack([halves, halves], axis=1)), 200, {"losses": evidence})
    assert weight(told) > weight(untold)
    assert correlation(told.values, truth) > correlation(untold.values, truth) + 0.1


def test_rows_that_were_seen_once_are_judged_by_their_one_visit() -> None:
    _, visits, evidence = made(2.0, 3.0)
    halves = visits[:, 0].copy()
    visits[:, 1] = np.nan
    found = combine(Halves(halves, visits), 200, {"losses": evidence})
    assert weight(found) > 0
    visits[..., :7] = np.nan  # and a few by no step
    assert weight(combine(Halves(halves, visits), 200, {"losses": evidence})) == weight(found)
    visits[:, 1, 100:200] = 1e9  # a few that were seen again say nothing of the others
    assert weight(combine(Halves(halves, visits), 200, {"losses": evidence})) == weight(found)
    unseen = np.full_like(visits, np.nan)
    assert weight(combine(Halves(halves, unseen), 200, {"losses": evidence})) == 0


def test_evidence_against_the_influences_gets_no_say() -> None:
    _, visits, evidence = made(1.0, 1.0)
    assert weight(combined(visits, -evidence)) == 0


def test_more_rows_are_judged_by_where_more_should_go() -> None:
    """Evidence that knows which rows are in the lower half, and no more, helps below that only."""
    truth, visits, _ = made(0.7, 0.0)
    halves, evidence = visits.mean(axis=1), np.where(truth < np.median(truth), -1.0, 1.0)
    few = combine(Halves(halves, visits), 200, {"losses": evidence})
    many = combine(Halves(halves, visits), 200, {"losses": evidence}, unlike=0.5)
    assert weight(many) > weight(few)


def test_scores_by_one_half_are_made_of_its_influences_and_the_evidence() -> None:
    _, visits, evidence = made(1.0, 0.5)
    halves = visits.mean(axis=1)
    found = combine(Halves(halves, visits), 200, {"losses": evidence})
    w = weight(found)
    assert w > 0
    np.testing.assert_allclose(
        found.by_half[0] * np.hypot(1, w) - w * normal_scores(evidence),
        normal_scores(halves[0]),
        atol=1e-12,
    )


def test_of_two_kinds_of_evidence_each_counts_by_what_it_adds() -> None:
    """One that knows some of the truth, and one that is told by half: another sample of it each."""
    truth, visits, losses = made(3.0, 1.0)
    random = np.random.default_rng(1)
    near = truth + random.normal(size=(2, len(truth)))
    noise = random.normal(size=near.shape)
    halves = Halves(visits.mean(axis=1), visits)
    one = combine(halves, 200, {"losses": losses})
    both = combine(halves, 200, {"losses": losses, "nearness": near})
    vain = combine(halves, 200, {"losses": losses, "nearness": noise})
    assert both.repeats.evidence["nearness"] > 3 * vain.repeats.evidence["nearness"]
    assert correlation(both.values, truth) > correlation(one.values, truth) + 0.05
    assert correlation(vain.values, truth) > correlation(one.values, truth) - 0.02
    w, v = both.repeats.evidence.values()
    np.testing.assert_allclose(
        both.by_half[1] * np.sqrt(1 + w**2 + v**2),
        normal_scores(halves.means[1]) + w * normal_scores(losses) + v * normal_scores(near[1]),
        atol=1e-12,
    )


def test_of_weights_that_cannot_be_told_apart_the_mean_counts_and_of_texts_the_least() -> None:
    _, visits, evidence = made(2.0, 1.0)
    halves = Halves(visits.mean(axis=1), visits)
    mean = weight(combine(halves, 200, {"losses": evidence}))
    least = weight(combine(halves, 200, {"losses": evidence}, wary=True))
    assert least in WEIGHTS
    assert mean not in WEIGHTS
    assert 0 < least < mean


def test_where_nothing_repeats_that_is_said() -> None:
    found = combined(np.random.default_rng(2).normal(size=(2, 2, 500)), rows=50).repeats
    assert found.low < 0 < found.high
    assert found.rows_needed is None


@pytest.mark.parametrize("halves", [np.zeros((2, 6)), np.stack([np.arange(6.0), np.zeros(6)])])
def test_scores_are_finite_whatever_never_varies(halves: np.ndarray) -> None:
    found = combine(Halves(halves, np.stack([halves, halves], axis=1)), 8, {"losses": np.zeros(6)})
    assert np.isfinite(found.values).all()
    numbers = [v for v in found.repeats.row().values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()
