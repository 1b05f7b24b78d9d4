"""Budgets: what is kept of values, by fraction, count, threshold and tokens, and by group."""

import numpy as np
import pytest

from curate.errors import UserError
from curate.selection import Array
from curate.selection.budget import Budget, share_out


def test_fraction_keeps_the_top_and_says_why() -> None:
    choice = Budget(fraction=0.5).choose(np.array([0.0, 3.0, 1.0, 2.0]))
    assert choice.kept.tolist() == [False, True, False, True]
    assert choice.reasons == ["below the budget", "top by score"] * 2


def test_count_and_threshold() -> None:
    values = np.array([0.0, 3.0, 1.0, 2.0])
    assert Budget(count=3).choose(values).kept.tolist() == [False, True, True, True]
    assert Budget(threshold=2.0).choose(values).kept.tolist() == [False, True, False, True]


def test_ties_go_to_the_earlier_row() -> None:
    assert Budget(count=2).choose(np.ones(4)).kept.tolist() == [True, True, False, False]


def test_a_fraction_keeps_at_least_one() -> None:
    assert Budget(fraction=0.01).choose(np.ones(4)).kept.sum() == 1


def test_quota_shares_out_by_group() -> None:
    values = np.array([9.0, 8, 7, 6, 1, 0])
    groups = np.array(["a", "a", "a", "a", "b", "b"])
    choice = Budget(count=3).choose(values, groups)
    assert choice.kept.tolist() == [True, True, False, False, True, False]
    assert choice.reasons[0] == "top of group a"
    assert choice.reasons[5] == "below the quota of group b"


def test_share_out_gives_every_place_once() -> None:
    for total in range(12):
        places = share_out(total, np.array([5, 3, 3, 1]))
        assert sum(places) == total
        assert all(p <= s for p, s in zip(places, [5, 3, 3, 1], strict=True))


def test_count_beyond_the_candidates_is_refused() -> None:
    with pytest.raises(UserError, match=r"selection.keep.count: is 5, but there are only 4"):
        Budget(count=5).choose(np.ones(4))


def test_a_budget_is_exactly_one_thing() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Budget(fraction=0.5, count=3)


def test_within_a_step_a_count_becomes_a_fraction() -> None:
    assert Budget(count=50).within_step(200) == Budget(fraction=0.25)
    assert Budget(threshold=1.0).within_step(200) == Budget(threshold=1.0)


def ranked(seed: int) -> tuple[Array, Array, Array]:
    """Rows in order of value, their tokens, and what the first 0, 1, 2, ... have together."""
    random = np.random.default_rng(seed)
    values, tokens = random.normal(size=12).round(1), random.integers(1, 30, size=12)
    order = np.argsort(-values, kind="stable")
    return values, tokens, np.concatenate([[0], np.cumsum(tokens[order])])


@pytest.mark.parametrize("seed", range(20))
def test_a_number_of_tokens_keeps_the_longest_head_of_the_ranking_that_fits(seed: int) -> None:
    values, tokens, sums = ranked(seed)
    before: Array = np.zeros(12, dtype=bool)
    for number in range(int(tokens.min()), int(sums[-1]) + 1):
        kept = Budget(tokens=number).choose(values, None, tokens).kept
        assert kept.sum() == max(k for k in range(13) if sums[k] <= number)
        assert tokens[kept].sum() <= number
        assert not kept.any() or kept.all() or values[kept].min() >= values[~kept].max()
        assert (kept >= before).all()  # more tokens keep no row less
        before = kept
    assert before.all()


@pytest.mark.parametrize("seed", range(20))
def test_a_share_of_the_tokens_is_met_to_the_nearest_row(seed: int) -> None:
    values, tokens, sums = ranked(seed)
    for share in (0.01, 0.25, 0.5, 0.9, 1.0):
        kept = Budget(tokens=share).choose(values, None, tokens).kept
        off = np.abs(sums[1:] - share * sums[-1])
        assert abs(tokens[kept].sum() - share * sums[-1]) == pytest.approx(off.min())
        assert not kept.any() or kept.all() or values[kept].min() >= values[~kept].max()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("asked", [40, 90, 0.3, 0.7])
def test_tokens_are_shared_out_among_groups_by_their_tokens(seed: int, asked: float) -> None:
    values, tokens, sums = ranked(seed)
    groups = np.array(list("aaabbbbbcccc"))
    kept = Budget(tokens=asked).choose(values, groups, tokens).kept
    total = asked if isinstance(asked, int) else asked * sums[-1]
    longest = tokens.max()
    assert total - longest <= tokens[kept].sum() <= total + (0 if asked > 1 else longest / 2)
    for group in "abc":
        own = groups == group
        quota = total * tokens[own].sum() / sums[-1]
        assert abs(tokens[own & kept].sum() - quota) <= 2 * longest
        inside, outside = values[own & kept], values[own & ~kept]
        assert not inside.size or not outside.size or inside.min() >= outside.max()


def test_a_share_of_the_tokens_keeps_a_row_of_a_step_in_any_case() -> None:
    tokens, groups = np.array([9, 9, 9]), np.array([0, 1, 2])
    assert Budget(tokens=0.1).choose(np.arange(3.0), None, tokens).kept.tolist() == [0, 0, 1]
    assert Budget(tokens=0.1).choose(np.arange(3.0), groups, tokens).kept.sum() == 1


def test_a_first_row_beyond_the_tokens_keeps_nothing() -> None:
    assert not Budget(tokens=5).choose(np.array([1.0, 0.0]), None, np.array([6, 2])).kept.any()


def test_within_a_step_tokens_become_a_share() -> None:
    assert Budget(tokens=50).within_step(3, 200) == Budget(tokens=0.25)
    assert Budget(tokens=0.3).within_step(3, 200) == Budget(tokens=0.3)
    assert Budget(tokens=0.3).share(7) == 0.3


def test_tokens_beyond_the_candidates_are_refused() -> None:
    tokens = np.array([7, 5])
    with pytest.raises(UserError, match=r"keep.tokens: is 13, but the candidates have only 12\."):
        Budget(tokens=13).choose(np.ones(2), None, tokens)
    with pytest.raises(UserError, match=r"keep.tokens: is 4, but the shortest candidate has 5\."):
        Budget(tokens=4).refuse_excess(2, tokens)
