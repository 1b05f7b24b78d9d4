"""The contract every policy keeps, and each policy against its definition."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest

from curate.selection.policies import (
    Array,
    Evidence,
    KNNShapley,
    LookAhead,
    Offer,
    Policy,
    Random,
    SmallLoss,
    shapley_values,
)

RNG = np.random.default_rng(0)
POLICIES = [
    LookAhead(),
    LookAhead(rounds=4),
    Random(20, seed=3),
    SmallLoss(),
    KNNShapley(RNG.normal(size=20)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
class TestContract:
    def offer(self, policy: Policy, rows: Array) -> Offer:
        losses, influences = np.arange(20.0) ** 1.5, np.sin(np.arange(20.0))
        return Offer(
            rows,
            np.ones(len(rows)),
            losses[rows] if policy.needs is not Evidence.NOTHING else None,
            np.stack([influences, -np.abs(influences)])[:, rows]
            if policy.needs is Evidence.INFLUENCE
            else None,
        )

    def test_values_are_finite_one_per_row(self, policy: Policy) -> None:
        values = policy.values(self.offer(policy, np.array([3, 1, 19])))
        assert values.shape == (3,)
        assert np.isfinite(values).all()
        assert policy.rounds == 1 or (values > 0).all()

    def test_same_offer_same_values(self, policy: Policy) -> None:
        offer = self.offer(policy, np.arange(20))
        np.testing.assert_array_equal(policy.values(offer), policy.values(offer))

    def test_a_row_is_worth_the_same_in_any_company(self, policy: Policy) -> None:
        if policy.rounds > 1:
            pytest.skip("in rounds a row is ranked among its company")
        everyone = policy.values(self.offer(policy, np.arange(20)))
        some = policy.values(self.offer(policy, np.array([7, 2])))
        np.testing.assert_array_equal(everyone[[7, 2]], some)


def test_look_ahead_prefers_what_helps_and_small_loss_what_is_easy() -> None:
    offer = Offer(
        np.arange(2), np.ones(2), losses=np.array([0.1, 5.0]), influences=np.array([[-1.0, 1.0]])
    )
    assert LookAhead().values(offer).argmax() == 1
    assert SmallLoss().values(offer).argmax() == 0


def brute_force_shapley(
    features: Array, labels: Array, point: Array, label: int, neighbors: int
) -> Array:
    count = len(features)
    distance = np.square(features - point).sum(axis=1)

    def utility(rows: list[int]) -> float:
        nearest = sorted(rows, key=lambda row: distance[row])[:neighbors]
        return sum(float(labels[row] == label) for row in nearest) / neighbors

    values = np.zeros(count)
    for order in permutations(range(count)):
        for position, row in enumerate(order):
            before = list(order[:position])
            values[row] += utility([*before, row]) - utility(before)
    return values / factorial(count)


@pytest.mark.parametrize("neighbors", [1, 2, 3, 8])
def test_knn_shapley_is_the_shapley_value(neighbors: int) -> None:
    features, labels = RNG.normal(size=(6, 2)), np.array([0, 1, 1, 0, 2, 1])
    points, point_labels = RNG.normal(size=(3, 2)), np.array([1, 0, 1])
    expected = np.mean(
        [
            brute_force_shapley(features, labels, point, int(label), neighbors)
            for point, label in zip(points, point_labels, strict=True)
        ],
        axis=0,
    )
    found = shapley_values(features, labels, points, point_labels, neighbors)
    np.testing.assert_allclose(found, expected, atol=1e-12)


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


def test_mean_weighs_the_targets() -> None:
    influences = RNG.normal(size=(3, 5))
    weights = np.array([1.0, 0.0, 0.25])
    offer = Offer(np.arange(5), np.ones(5), influences=influences, target_weights=weights)
    expected = (influences[0] + influences[2] / 4) / 1.25
    np.testing.assert_allclose(LookAhead().values(offer), expected)
