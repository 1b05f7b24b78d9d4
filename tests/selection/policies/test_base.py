"""The contract of every policy: a new one is enrolled by a line in the table."""

import numpy as np
import pytest

from curate.selection import Array
from curate.selection.policies import (
    Evidence,
    KNNShapley,
    LookAhead,
    Offer,
    Policy,
    Random,
    SmallLoss,
)

POLICIES: dict[str, Policy] = {
    "look_ahead": LookAhead(),
    "look_ahead in rounds": LookAhead(rounds=4),
    "random": Random(20, seed=3),
    "loss": SmallLoss(),
    "knn_shapley": KNNShapley(np.random.default_rng(0).normal(size=20)),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
class TestContract:
    def offer(self, policy: Policy, rows: Array) -> Offer:
        """Rows of 20, with the evidence that the policy asks for and no other."""
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

    def test_a_single_row_has_a_value(self, policy: Policy) -> None:
        values = policy.values(self.offer(policy, np.array([5])))
        assert values.shape == (1,)
        assert np.isfinite(values).all()

    def test_same_offer_same_values(self, policy: Policy) -> None:
        offer = self.offer(policy, np.arange(20))
        np.testing.assert_array_equal(policy.values(offer), policy.values(offer))

    def test_an_offer_is_not_changed(self, policy: Policy) -> None:
        offer, again = (self.offer(policy, np.arange(20)) for _ in range(2))
        policy.values(offer)[:] = 7.0
        policy.values(offer)
        for name in ("rows", "weights", "losses", "influences"):
            np.testing.assert_array_equal(getattr(offer, name), getattr(again, name))

    def test_values_follow_the_rows_in_any_order(self, policy: Policy) -> None:
        order = np.random.default_rng(1).permutation(20)
        values = policy.values(self.offer(policy, np.arange(20)))
        np.testing.assert_array_equal(policy.values(self.offer(policy, order)), values[order])

    def test_a_row_is_worth_the_same_in_any_company(self, policy: Policy) -> None:
        if policy.rounds > 1:
            pytest.skip("in rounds a row is ranked among its company")
        everyone = policy.values(self.offer(policy, np.arange(20)))
        some = policy.values(self.offer(policy, np.array([7, 2])))
        np.testing.assert_array_equal(everyone[[7, 2]], some)
