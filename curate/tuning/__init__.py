"""Horizon and learning rate, tuned together."""

from curate.tuning.grid import Grid, Pair
from curate.tuning.tune import Tuned, tune_job

__all__ = ["Grid", "Pair", "Tuned", "tune_job"]
