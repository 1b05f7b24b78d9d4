"""KNN-Shapley against the definition of the Shapley value, over all orders of the rows."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest

from curate.selection import Array
from curate.selection.policies import shapley_values

RNG = np.random.default_rng(0)


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
    values = shapley_values(features, labels, points, point_labels, neighbors)
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_values_add_up_to_the_accuracy_of_all_rows() -> None:
    """Efficiency: the sum is the utility of everybody, here 1 of 2 neighbors for each point."""
    features, labels = np.array([[0.0], [1.0], [9.0]]), np.array([1, 0, 1])
    points, point_labels = np.array([[0.1], [0.4]]), np.array([1, 0])
    assert shapley_values(features, labels, points, point_labels, 2).sum() == pytest.approx(0.5)
