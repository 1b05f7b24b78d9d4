"""Look-ahead: influences over the targets, and weights that move by rank in rounds."""

import numpy as np
import pytest

from curate.selection.policies import LookAhead, Offer
from curate.selection.policies.look_ahead import centered_ranks


def test_it_prefers_what_helps() -> None:
    offer = Offer(np.arange(2), np.ones(2), influences=np.array([[-1.0, 1.0]]))
    assert LookAhead().values(offer).tolist() == [-1, 1]


def test_mean_weighs_the_targets() -> None:
    influences = np.random.default_rng(0).normal(size=(3, 5))
    weights = np.array([1.0, 0.0, 0.25])
    offer = Offer(np.arange(5), np.ones(5), influences=influences, target_weights=weights)
    expected = (influences[0] + influences[2] / 4) / 1.25
    np.testing.assert_allclose(LookAhead().values(offer), expected)


def test_rounds_move_weights_by_rank_and_clamp_them() -> None:
    policy = LookAhead(rounds=2)
    influences, weights = np.array([3.0, -1.0, 0.5]), np.array([1.0, 1.0, 1.0])
    np.testing.assert_allclose(
        policy.values(Offer(np.arange(3), weights, influences=influences[None])),
        [1.5, 0.5, 1],
        atol=3e-6,
    )
    extreme = np.array([1.9, 0.1, 1.0])
    moved = policy.values(Offer(np.arange(3), extreme, influences=influences[None] * extreme))
    np.testing.assert_allclose(moved, [2.0, 0.02, 1.0], atol=3e-6)


def test_clamped_weights_are_told_apart_by_their_last_rank() -> None:
    weights = np.full(4, 2.0)
    offer = Offer(np.arange(4), weights, influences=np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert (np.diff(LookAhead(rounds=2).values(offer)) > 0).all()


def test_rounds_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1 but got 0"):
        LookAhead(rounds=0)


def test_ranks_go_from_minus_one_to_one_and_ties_share_theirs() -> None:
    assert centered_ranks(np.array([3.0, 9.0, 3.0, -1.0])).tolist() == pytest.approx([0, 1, 0, -1])
    assert centered_ranks(np.array([5.0])).tolist() == [0]
