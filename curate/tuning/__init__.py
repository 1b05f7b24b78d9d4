"""Horizon and learning rate, tuned together."""

from curate.tuning.grid import Pair, Plan
from curate.tuning.tune import Tuned, tune_job

__all__ = ["Pair", "Plan", "Tuned", "tune_job"]
