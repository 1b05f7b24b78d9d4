"""How much each candidate is worth: one file for each policy."""

from curate.selection.policies.base import Evidence, Offer, Policy
from curate.selection.policies.combine import Combined, Halves, Repeatability, combine
from curate.selection.policies.knn_shapley import KNNShapley, shapley_values
from curate.selection.policies.look_ahead import LookAhead
from curate.selection.policies.loss import SmallLoss
from curate.selection.policies.random import Random

__all__ = [
    "Combined",
    "Evidence",
    "Halves",
    "KNNShapley",
    "LookAhead",
    "Offer",
    "Policy",
    "Random",
    "Repeatability",
    "SmallLoss",
    "combine",
    "shapley_values",
]
