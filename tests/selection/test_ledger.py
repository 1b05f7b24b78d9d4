"""Standardizing and adding up."""

import numpy as np

from curate.selection.ledger import Ledger


def test_means_over_occurrences() -> None:
    ledger = Ledger(4, target_weights=np.array([1.0, 3.0]))
    ledger.add(np.array([0, 1]), np.array([-1.0, 1.0]), np.array([[1.0, 3.0], [2.0, 6.0]]))
    ledger.add(np.array([1, 2]), np.array([-1.0, 1.0]), np.array([[5.0, 9.0], [0.0, 0.0]]))
    scores = ledger.scores(with_influences=True)
    assert scores.seen.tolist() == [1, 2, 1, 0]
    assert scores.influences is not None
    np.testing.assert_allclose(scores.influences, [[1, 4, 9, 0], [2, 3, 0, 0]])
    np.testing.assert_allclose(scores.influence, [1.75, 3.25, 2.25, 0])
    np.testing.assert_allclose(scores.score, [-1, 0, 1, 0])


def test_halves_are_told_apart_by_visits() -> None:
    """A row's odd visits and its even ones, in sums and after they were saved."""
    shares = np.full((2, 1), 0.5)
    ledger = Ledger(4, np.ones(2), half_shares=shares)
    steps = [
        (np.array([0, 1]), np.array([[2.0, -2.0], [6.0, -6.0]])),
        (np.array([1, 2]), np.array([[1.0, -1.0], [-3.0, 3.0]])),
        (np.array([0, 1]), np.array([[-5.0, 5.0], [4.0, -4.0]])),
    ]
    for rows, influences in steps[:2]:
        ledger.add(rows, np.zeros(2), influences)
    again = Ledger(4, np.ones(2), half_shares=shares)
    again.restore(ledger.saved())
    for rows, influences in steps[2:]:
        again.add(rows, np.zeros(2), influences)
    scores = again.scores(with_influences=True)
    assert scores.halves is not None
    none = np.nan  # row 1 is seen three times, and every step's values are standardized
    odd, even = [[1, 0, -1, none], [1, -1, 1, none]], [[-1, 1, none, none], [1, -1, none, none]]
    np.testing.assert_allclose(scores.halves.visits[:, 0], odd)
    np.testing.assert_allclose(scores.halves.visits[:, 1], even)
    np.testing.assert_allclose(scores.halves.means, [[0, 1 / 3, -1, 0], [1, -1, 1, 0]])
