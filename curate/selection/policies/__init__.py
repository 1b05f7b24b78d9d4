"""What to keep: how candidates are valued, and under which budget."""

from curate.selection import Array
from curate.selection.budget import Budget, Choice, share_out
from curate.selection.policies.base import Evidence, Offer, Policy
from curate.selection.policies.knn_shapley import KNNShapley, shapley_values
from curate.selection.policies.look_ahead import LookAhead
from curate.selection.policies.loss import SmallLoss
from curate.selection.policies.random import Random
from curate.selection.policies.shrinkage import Repeatability, Shrunk, normal_scores, shrink
from curate.selection.ranking import average_ranks
from curate.selection.scale import standardize

__all__ = [
    "Array",
    "Budget",
    "Choice",
    "Evidence",
    "KNNShapley",
    "LookAhead",
    "Offer",
    "Policy",
    "Random",
    "Repeatability",
    "Shrunk",
    "SmallLoss",
    "average_ranks",
    "normal_scores",
    "shapley_values",
    "share_out",
    "shrink",
    "standardize",
]
