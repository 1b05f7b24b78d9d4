"""Standardizing and adding up."""

import numpy as np

from curate.selection.ledger import Ledger
from curate.selection.scale import standardize


def test_standardized_within_the_step() -> None:
    scores = standardize(np.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-12)


def test_standardized_within_each_label_of_three_or_more() -> None:
    values = np.array([1.0, 2, 3, 101, 102, 103, 50, 51])
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    scores = standardize(values, labels)
    np.testing.assert_allclose(scores[:3], scores[3:6])
    np.testing.assert_allclose(scores[6:], standardize(values)[6:])  # too few: the whole step


def test_equal_values_score_zero_even_where_rounding_differs() -> None:
    assert (standardize(np.full(4, 0.1) + np.array([0, 1e-17, 0, -1e-17])) == 0).all()
    assert (standardize(np.zeros(3)) == 0).all()


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
