"""Standardizing within a step, and within its labels."""

import numpy as np

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
