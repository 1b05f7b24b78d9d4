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
