"""What to keep: how candidates are valued, and under which budget."""

from curate.policies.base import Array, Evidence, Offer, Policy
from curate.policies.budgets import Budget, Choice, share_out
from curate.policies.knn_shapley import KNNShapley, shapley_values
from curate.policies.look_ahead import LookAhead
from curate.policies.ranking import average_ranks
from curate.policies.shrinkage import Repeatability, Shrunk, normal_scores, shrink
from curate.policies.small_loss import SmallLoss
from curate.policies.standardise import standardise
from curate.policies.uniform import Random

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
    "standardise",
]
