"""KNN-Shapley: the exact Shapley value of each row for a k-nearest-neighbor classifier."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from curate.selection import Array
from curate.selection.policies.base import Evidence, Offer, Setting


@dataclass(frozen=True)
class KNNShapley:
    """Value = Shapley value under k-NN accuracy on the validation set; no model is trained.

    For one validation point, rows sorted by distance, y the point's label:

        s_N = 1[y_N = y] / N
        s_i = s_{i+1} + (1[y_i = y] - 1[y_{i+1} = y]) / k * min(k, i) / i

    averaged over validation points (Jia et al., "Efficient task-specific data
    valuation for nearest neighbor algorithms", VLDB 2019, theorem 1, where s_N
    has the factor min(k, N) / k that it needs when N < k).

    shapley: precomputed by `shapley_values`, shape (N,).
    """

    shapley: Array

    needs = Evidence.NOTHING
    rounds = 1

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(shapley_values(*setting.points(), setting.neighbors))

    def values(self, offer: Offer) -> Array:
        values: Array = self.shapley[offer.rows]
        return values


def shapley_values(
    features: Array, labels: Array, points: Array, point_labels: Array, neighbors: int
) -> Array:
    """Shapley values of N rows, shape (N,). O(V N (F + log N)) time, O(N) memory per point.

    Args:
        features, labels: of the rows, shapes (N, F) and (N,).
        points, point_labels: of the validation set, shapes (V, F) and (V,).
        neighbors: k.
    """
    count = len(features)
    position = np.arange(1, count)
    factor = np.minimum(neighbors, position) / position / neighbors
    total = np.zeros(count)
    squares = np.square(features).sum(axis=1)
    for point, label in zip(points, point_labels, strict=True):
        order = np.argsort(squares - 2 * features @ point, kind="stable")
        match = (labels[order] == label).astype(float)
        values = np.empty(count)
        values[-1] = match[-1] * min(neighbors, count) / neighbors / count
        values[:-1] = values[-1] + np.cumsum((np.diff(-match) * factor)[::-1])[::-1]
        total[order] += values
    return total / len(points)
